"""Private names of a host, looked up under every name that they have had, and never silently absent."""

from __future__ import annotations

from importlib.metadata import version
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
    raise ValueError(
        f"{host.package} {version(host.package)} has no {owner}.{shown}, which is needed {feature}; tested versions: "
        f"{host.tried}"
    )


def check_names(thing: Any, names: tuple[str, ...], *, host: Host, feature: str) -> None:
    """Refuse ``thing`` if it lacks one of ``names``: see :func:`look_up`.

    Raises:
        ValueError: for the first that it lacks.
    """
    for name in names:
        look_up(thing, name, host=host, feature=feature)
