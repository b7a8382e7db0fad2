"""What headers of every kind have in common: the names in them, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from lowprec_plugin.export.c_arrays import check_distinct, identifier, names_in_c
from lowprec_plugin.export.integers import State, Words, integers_only
from lowprec_plugin.export.network import part_of
from lowprec_plugin.text.files import whole_text


class Header(NamedTuple):
    """What a header is to hold.

    Attributes:
        prefix: of all names in it.
        words: the tensors, by their names in the state dict.
        names: what each is called in C.
    """

    prefix: str
    words: dict[str, Words]
    names: dict[str, str]


def header_of(
    module_or_state: nn.Module | State, path: str | Path, leave_out: Iterable[str], network: str, kind: str
) -> Header:
    """What the header at ``path`` is to hold of a module's submodule ``network``, or of a state dict.

    Args:
        kind: of header, for messages.

    Raises:
        ValueError: as :func:`.c_arrays.identifier`, :func:`.network.part_of`, :func:`.integers.integers_only` and
            :func:`.c_arrays.names_in_c`.
    """
    prefix = identifier(path)
    state = part_of(module_or_state, network) if isinstance(module_or_state, nn.Module) else module_or_state
    words = integers_only(state, leave_out, kind)
    return Header(prefix, words, names_in_c(prefix, words))


def write_header(path: str | Path, parts: Iterable[str]) -> None:
    """Write a header of these parts, whole or not at all.

    Raises:
        ValueError: if a name is defined twice.
    """
    text = "\n\n".join(parts)
    check_distinct(text)
    whole_text(path, text)
