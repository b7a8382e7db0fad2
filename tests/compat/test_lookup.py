"""A private name that a host has renamed is an error that says so; one that it had before is found."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lowprec_plugin.compat import fsdp
from lowprec_plugin.compat.lookup import DEEPSPEED, LIGHTNING, TORCH, Host, check_module, check_names, look_up


def test_the_first_name_that_is_there_is_read() -> None:
    thing = SimpleNamespace(_old=1, _none=None)
    assert look_up(thing, "_new", "_old", host=TORCH, feature="") == 1
    assert look_up(thing, "_none", "_old", host=TORCH, feature="") is None


@pytest.mark.parametrize("host", [TORCH, LIGHTNING, DEEPSPEED])
def test_what_is_missing_is_named_with_the_feature_and_the_versions(host: Host) -> None:
    with pytest.raises(ValueError, match=rf"^{host.package} \d.* has no SimpleNamespace._a or _b, which") as info:
        look_up(SimpleNamespace(), "_a", "_b", host=host, feature="to count")
    assert str(info.value).endswith(f"which is needed to count; tested versions: {host.tried}")


def test_names_of_classes_and_mangled_names_read_as_they_are_written() -> None:
    with pytest.raises(ValueError, match=r" has no Module\._gone, "):
        look_up(nn.Module, "_gone", host=TORCH, feature="")
    with pytest.raises(ValueError, match=r" has no SimpleNamespace\.scatter, "):
        check_names(SimpleNamespace(a=1), ("a", "_Stage3__scatter"), host=DEEPSPEED, feature="")


def test_a_module_is_looked_for_without_being_imported() -> None:
    check_module("torch._dynamo", host=TORCH, feature="")
    check_module("json.tool", host=TORCH, feature="")  # a file, and not yet imported
    assert "json.tool" not in sys.modules
    for gone in ("torch._dynamo_by_another_name", "torch.onnx._internal.gone"):
        with pytest.raises(ValueError, match=rf"^torch \S+ has no {re.escape(gone)}, which is needed to see"):
            check_module(gone, host=TORCH, feature="to see")


class _Sharded(nn.Module):
    """A module whose class FSDP2 has changed, as ``fully_shard`` does."""

    def __init__(self, **state: object) -> None:
        super().__init__()
        self.state = SimpleNamespace(**state)

    def _get_fsdp_state(self) -> SimpleNamespace:
        return self.state


@pytest.fixture
def sharded(monkeypatch: pytest.MonkeyPatch) -> type[_Sharded]:
    monkeypatch.setattr(fsdp, "FSDPModule", _Sharded)
    return _Sharded


def test_groups_of_fsdp2_are_found_one_or_several(sharded: type[_Sharded]) -> None:
    group = SimpleNamespace(_reduce_scatter_comm="one", _reset_sharded_params=True)
    other = SimpleNamespace(_reduce_scatter_comm="other", _reset_sharded_params=False)
    assert fsdp.reducers_of(sharded(_fsdp_param_groups=[group, other])) == ["one", "other"]
    assert fsdp.reducers_of(sharded(_fsdp_param_group=group)) == ["one"]
    assert fsdp.reducers_of(sharded(_fsdp_param_group=None)) == []
    assert fsdp.has_gathered(sharded(_fsdp_param_group=group))
    assert not fsdp.has_gathered(sharded(_fsdp_param_group=other))


@pytest.mark.parametrize("ask", [fsdp.reducers_of, fsdp.has_gathered, fsdp.reset_shards])
def test_a_renamed_part_of_fsdp2_is_never_taken_for_nothing(sharded: type[_Sharded], ask: object) -> None:
    assert callable(ask)
    with pytest.raises(ValueError, match=rf"torch {torch.__version__.split('+')[0]}.* has no SimpleNamespace\._fsdp"):
        ask(sharded(_groups_by_another_name=[]))
    with pytest.raises(ValueError, match="has no SimpleNamespace"):
        ask(sharded(_fsdp_param_groups=[SimpleNamespace()]))
