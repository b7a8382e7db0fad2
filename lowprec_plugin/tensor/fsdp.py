"""How FSDP2 (``torch.distributed.fsdp.fully_shard``) gathers the shards of a fixed-point parameter: as codes.

Each rank sends its planes as bytes. What operations see between two gathers is a fixed-point tensor over the bytes
that came, so that even the gathered parameter takes no more than its codes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lowprec_plugin.compat.callers import fsdp_calls
from lowprec_plugin.tensor.coded import Coded


class Gathered(Coded):
    """What FSDP2 looks for in a sharded tensor."""

    def untyped_storage(self) -> torch.UntypedStorage:
        """For FSDP2 the codes', by whose address it tells whether a parameter has been exchanged; else torch's own."""
        return self._codes.untyped_storage() if fsdp_calls() else torch.Tensor.untyped_storage(self)

    # With more arguments FSDP insists that all planes have the parameter's shape, on the ranks with padding alone.
    def fsdp_pre_all_gather(self, mesh: Any) -> tuple[tuple[Tensor, ...], None]:
        """The planes of this shard as bytes, with rows of zeros up to the size of the largest shard."""
        assert self.whole_rows is not None, "a shard knows what it is a shard of"
        missing = -(-self.whole_rows // mesh.size()) - self.shape[0]
        planes = [_with_rows(plane, missing) for plane in self.blocks.planes]
        return tuple(plane.view(torch.uint8) for plane in planes), None

    def fsdp_post_all_gather(
        self,
        all_gather_outputs: tuple[Tensor, ...],
        metadata: None,
        param_dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> tuple[Coded, tuple[Tensor, ...]] | None:
        """The whole parameter, on the bytes that were gathered; later gathers write to the same bytes."""
        planes = self.blocks.planes
        if out is not None:
            if len(all_gather_outputs) != len(planes):  # one rank: the shard itself, which may be another by now
                whole = cast(Coded, out)
                whole._codes, whole._low, whole._exponents = self.blocks
            return None
        if len(all_gather_outputs) == len(planes):
            given = dict(zip(map(id, planes), all_gather_outputs, strict=True))
            blocks = self.blocks.map(lambda plane: given[id(plane)].view(plane.dtype)[: self.whole_rows])
        else:  # on one rank FSDP copies the first plane alone; the shard is the whole parameter
            blocks = self.blocks
        with torch.inference_mode(False):  # it is kept, and will need gradients though this forward pass does not
            whole = self._like(blocks, dtype=param_dtype, geometry=None, first_row=0)
        whole.whole_rows = None
        return whole, ()


def _with_rows(plane: Tensor, missing: int) -> Tensor:
    """``plane`` with ``missing`` more rows of zeros."""
    if missing == 0:
        return plane.contiguous()
    return torch.cat([plane, plane.new_zeros(missing, *plane.shape[1:])])
