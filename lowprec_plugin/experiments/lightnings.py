"""Which Lightning a configuration is run by: the one that its module derives from."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from lowprec_plugin.compat.lightnings import LIGHTNINGS, Lightning, in_use
from lowprec_plugin.experiments.config import class_path, one_or_more
from lowprec_plugin.text.option_error import Option, OptionError

#: Arguments of a Trainer that are made of classes.
_PARTS = ("callbacks", "logger", "plugins", "profiler", "strategy")


def lightning_of_config(config: Mapping[str, Any]) -> Lightning:
    """The Lightning of the configuration's model, or else of its data, or else the one in use.

    What cannot be imported is passed over, for it is refused, with the reason, where it is made.

    Raises:
        ValueError: if another class of the configuration is of another Lightning.
    """
    made = {where: (path, cls) for where, path in _paths(config) if (cls := _class_of(path)) is not None}
    told = ((each, where) for where in ("model", "data") if where in made for each in _all_of(made[where][1]))
    chosen, by = next(told, (None, ""))
    if chosen is None:
        return in_use()
    for where, (path, cls) in made.items():
        of = _all_of(cls)
        if of and chosen not in of:
            raise OptionError(
                Option.given(where, path), f" is a class of {of[0].name}, and ", Option.given(by, made[by][0]),
                f" of {chosen.name}, to whose Trainer it is a stranger: import "
                f"{'it' if path.startswith(of[0].name) else 'Lightning there'} from {chosen.name} too",
            )  # fmt: skip
    return chosen


def _paths(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    trainer = config.get("trainer")
    parts = {f"trainer.{name}": trainer.get(name) for name in _PARTS} if isinstance(trainer, Mapping) else {}
    for where, part in {"model": config.get("model"), "data": config.get("data"), **parts}.items():
        for each in one_or_more(part):
            yield where, class_path(each)


def _all_of(cls: type) -> list[Lightning]:
    return [each for each in LIGHTNINGS if each.has(cls)]


def _class_of(path: str) -> type | None:
    """The class at ``path``, or that a function there says it returns; ``None`` if there is none."""
    if "." not in path:  # a class by its name alone, which jsonargparse looks up
        return None
    try:
        found = pkgutil.resolve_name(path)
        made = found if inspect.isclass(found) else get_type_hints(found).get("return")
    except Exception:  # of the user's own code, too
        return None
    return made if inspect.isclass(made) else None
