"""Pictures of a proof of concept's report, as a desktop, a phone and the dark show it.

python -m tests.pictures FOLDER/report.html docs/images
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.browser import Browser

#: Width and height in CSS pixels, dark, touch.
WINDOWS = {"desktop": (1200, 1480, False, False), "phone": (390, 844, False, True), "dark": (1200, 1480, True, False)}


def take(report: Path, folder: Path) -> list[Path]:
    """Write ``poc-WINDOW.png`` into ``folder``, one for each window; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with Browser() as browser:
        for name, (width, height, dark, touch) in WINDOWS.items():
            browser.open(report, width, height, dark=dark, touch=touch)
            paths.append(folder / f"poc-{name}.png")
            browser.screenshot(paths[-1])
    return paths


if __name__ == "__main__":
    print(*take(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
