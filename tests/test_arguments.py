"""Arguments of the wrong type, and odd values: each public function takes them or refuses them by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from lowprec_plugin import (
    Emulation,
    FixedPointFormat,
    FixedPointMonitor,
    FixedPointPrecision,
    FixedPointTensor,
    WordLengthRamp,
    comm,
    emulate,
    export,
    keep_activations,
    memory,
    optim,
)
from lowprec_plugin.deepspeed import FixedPointDeepSpeedPrecision, adopt_engine
from lowprec_plugin.plan import plan
from tests.algorithms import CLASSES

ODD: list[Any] = [
    None, "x", "", [1], (), {}, {"x": 1}, float("nan"), float("inf"), 0, -1, 2.5, 2**70, object(), b"x", True,
    torch.ones(3), torch.tensor(float("nan")), len, int,
]  # fmt: skip
#: What is refused in the end where the odd argument is taken: calls of one process, no engine, nothing to write,
#: an example that the network does not take.
ELSE = (
    "process group has not been initialized", "model=Sequential", "no part of this Sequential is sharded",
    "NoneType is not a DeepSpeedEngine", "none of the 0 entries", "entries is in fixed-point", "is no tensor",
    "does not take a batch of shape",
)  # fmt: skip


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4))


def fixed(format: str = "fixed16") -> nn.Module:
    module = net()
    optim.quantize_(module, format)
    return module


def adopted() -> torch.optim.Optimizer:
    return optim.adopt(torch.optim.SGD(fixed().parameters(), lr=0.1))


class Call(NamedTuple):
    """A public function, what it is given beside the odd argument, and the arguments that are tried."""

    function: Callable[..., Any]
    given: Callable[[], dict[str, Any]] = dict
    arguments: tuple[str, ...] = ()  #: all but ``params``, if empty

    def names(self) -> tuple[str, ...]:
        found = inspect.signature(self.function).parameters.values()
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return self.arguments or tuple(each.name for each in found if each.kind not in kinds and each.name != "params")


def made(kind: type[torch.optim.Optimizer]) -> Call:
    return Call(kind, lambda: {"params": list(fixed().parameters()), "lr": 0.1})


def written(write: Callable[..., Any]) -> Call:
    return Call(write, lambda: {"module_or_state": fixed("<4,12>"), "path": "out.file"})


CALLS: dict[str, Call] = {
    "FixedPointPrecision": Call(FixedPointPrecision),
    "FixedPointDeepSpeedPrecision": Call(FixedPointDeepSpeedPrecision),
    "FixedPointMonitor": Call(FixedPointMonitor),
    "FixedPointFormat": Call(FixedPointFormat, lambda: {"word_length": 16}),
    "FixedPointFormat.parse": Call(FixedPointFormat.parse),
    "FixedPointTensor.quantize": Call(  # what x may hold: tests/tensor/test_tensor.py
        FixedPointTensor.quantize, lambda: {"x": torch.ones(4, 4), "format": "fixed16"},
        ("format", "rounding", "seed", "label", "dtype", "first_row"),
    ),
    "WordLengthRamp": Call(WordLengthRamp),
    "Emulation": Call(Emulation),
    "emulate": Call(emulate, lambda: {"module": net(), "emulation": Emulation()}),
    "keep_activations": Call(keep_activations, lambda: {"module": net(), "word_length": 8}),
    "optim.quantize_": Call(optim.quantize_, lambda: {"module": net()}),
    "optim.to_float_": Call(optim.to_float_, lambda: {"module": fixed()}),
    "optim.widen_": Call(optim.widen_, lambda: {"module": fixed(), "optimizers": (), "word_length": 20}),
    "optim.adopt": Call(optim.adopt, lambda: {"optimizer": adopted()}),
    "optim.StepSettings": Call(optim.StepSettings),
    **{f"optim.{ours.__name__}": made(ours) for ours in CLASSES},
    "comm.all_reduce": Call(comm.all_reduce, lambda: {"tensor": torch.ones(4)}),
    "comm.reduce_scatter": Call(comm.reduce_scatter, lambda: {"output": torch.ones(4), "input": torch.ones(4)}),
    "comm.all_gather": Call(comm.all_gather, lambda: {"output": torch.ones(4), "input": torch.ones(4)}),
    "comm.DDPState": Call(comm.DDPState, lambda: {"model": net()}),
    "comm.FSDPState": Call(comm.FSDPState, lambda: {"model": net()}),
    "deepspeed.adopt_engine": Call(
        adopt_engine, lambda: {"engine": None}, ("format", "state_word_length", "comm_word_length", "rounding", "seed")
    ),
    "memory.report": Call(memory.report, lambda: {"module": net()}),
    "export.to_c": written(export.to_c), "export.to_hls": written(export.to_hls),
    "export.to_float": written(export.to_float), "export.to_safetensors": written(export.to_safetensors),
    "export.read_safetensors": Call(export.read_safetensors),
    "export.estimate": Call(export.estimate, lambda: {"module": fixed(), "input_shape": (4,)}),
    "plan": Call(plan, lambda: {"model": net()}),
}  # fmt: skip


def answer(call: Call, name: str, odd: Any) -> None:
    result = call.function(**{**call.given(), name: odd})
    if hasattr(result, "__enter__"):
        with result:
            pass


def wrong_with(call: Call, name: str, odd: Any) -> str | None:
    """What is wrong with the answer, if it is neither a success nor a ValueError that names the argument."""
    if name == "keep_float" and callable(odd):
        return None  # a function of the user's, which raises what it raises
    try:
        answer(call, name, odd)
    except (ValueError, FileNotFoundError) as error:
        named = re.search(rf"(?<![a-z]){name}(?![a-z])", str(error)) or any(
            each in str(error) for each in (repr(odd), *ELSE)
        )
        return None if named else f"{name}={odd!r}: does not name the argument: {error}"
    except Exception as error:
        return f"{name}={odd!r}: {type(error).__name__}: {error}"
    return None


@pytest.mark.filterwarnings("ignore")  # of what is accepted
@pytest.mark.parametrize("function", CALLS)
def test_what_is_not_taken_is_refused_by_name(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = CALLS[function]
    assert [wrong for name in call.names() for odd in ODD if (wrong := wrong_with(call, name, odd))] == []


TAKEN_FOR_TRUE = [
    ("FixedPointPrecision", "comm_error_feedback"), ("FixedPointPrecision", "leave_float"),
    ("FixedPointMonitor", "layers"), ("FixedPointFormat", "squared"),
    ("emulate", "training"), ("comm.DDPState", "error_feedback"), ("plan", "bucket_view"),
    ("plan", "comm_error_feedback"), ("export.estimate", "training"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "name"), TAKEN_FOR_TRUE)
def test_nothing_but_true_and_false_is_taken_for_either(function: str, name: str) -> None:
    call = CALLS[function]
    for odd in ("false", 0, None, torch.ones(3)):
        with pytest.raises(ValueError, match=f"{name}=.* is of type .*, not bool"):
            answer(call, name, odd)
