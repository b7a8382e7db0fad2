"""Trials of the plugin under faults, each a sub-command that ends with 1 if the plugin failed one.

python -m tools.faults kills --out docs/results/faults
"""

from __future__ import annotations

import argparse
import sys

from tools.faulty import damage, fuzz, hostile, kills

SUBCOMMANDS = (kills, damage, hostile, fuzz)


def main() -> int:
    """Run the sub-command that the command line names, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(required=True)
    for subcommand in SUBCOMMANDS:
        subcommand.add_to(subparsers)
    given = parser.parse_args()
    return int(given.run(given))


if __name__ == "__main__":
    sys.exit(main())
