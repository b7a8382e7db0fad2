"""Private names of a host, looked up under every name that they have had, and never silently absent."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple


class Host(NamedTuple):
    """A package whose private names are used.

    Attributes:
        package: its name, as it is installed.
        tried: the versions that the tests have run with, in words.
    """

    package: str
    tried: str


TORCH = Host("torch", "2.10.0 to 2.15.0")
LIGHTNING = Host("lightning", "2.6.0 to 2.6.6")
DEEPSPEED = Host("deepspeed", "0.19.8")


def look_up(thing: Any, *names: str, host: Host, feature: str) -> Any:
    """The attribute of ``thing`` under the first of ``names`` that it has.

    Args:
        thing: an object or class of ``host``.
        names: what the attribute is called in one version or another, the newest first.
        host: whose private name it is.
        feature: what cannot be done without it, as the end of "which is needed ...".

    Raises:
        ValueError: if it has none of them, with the versions that are known to.
    """
    for name in names:
        if hasattr(thing, name):
            return getattr(thing, name)
    owner = getattr(thing, "__name__", type(thing).__name__)
    shown = " or ".join(name.rpartition("__")[2] if "__" in name.strip("_") else name for name in names)
    raise ValueError(_missing(f"{owner}.{shown}", host, feature))


def _missing(name: str, host: Host, feature: str) -> str:
    return (
        f"{host.package} {version(host.package)} has no {name}, which is needed {feature}; tested versions: "
        f"{host.tried}"
    )


def check_names(thing: Any, names: tuple[str, ...], *, host: Host, feature: str) -> None:
    """Refuse ``thing`` if it lacks one of ``names``; see :func:`look_up`.

    Raises:
        ValueError: for the first that it lacks.
    """
    for name in names:
        look_up(thing, name, host=host, feature=feature)


@cache
def check_module(name: str, *, host: Host, feature: str) -> None:
    """Refuse a ``host`` without the module ``name``, which is not imported here: see :func:`look_up`.

    Raises:
        ValueError: if there is no such module.
    """
    if name in sys.modules:
        return
    top, *parts = name.split(".")
    spec = find_spec(top)
    places = [] if spec is None else [Path(each, *parts) for each in spec.submodule_search_locations or ()]
    if not any(place.is_dir() or any(place.parent.glob(f"{place.name}.*")) for place in places):
        raise ValueError(_missing(name, host, feature))
