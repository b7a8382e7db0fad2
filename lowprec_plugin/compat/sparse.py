"""The inside of a sparse tensor."""

from __future__ import annotations

from torch import Tensor

from lowprec_plugin.compat.lookup import TORCH, look_up


def tensors_in(tensor: Tensor) -> list[Tensor]:
    """The tensors that a sparse ``tensor`` holds, as they are; none of another layout.

    The public ``indices()`` and ``values()`` of the coordinate layout ask for sorted ones first.

    Raises:
        ValueError: if this torch keeps them elsewhere.
    """
    names: tuple[str, ...]
    kind = str(tensor.layout).removeprefix("torch.sparse_")
    if kind == "coo":
        names = ("_indices", "_values")
    elif kind in ("csr", "bsr"):
        names = ("crow_indices", "col_indices", "values")
    elif kind in ("csc", "bsc"):
        names = ("ccol_indices", "row_indices", "values")
    else:
        return []
    return [look_up(tensor, name, host=TORCH, feature="to count the bytes of sparse tensors")() for name in names]
