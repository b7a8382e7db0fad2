"""``lowprec``: the proof of concept, the search for formats, the benchmark, export, and LightningCLI's own commands.

A command's own module is imported when the command is given: help need not wait for what it does not use.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from pkgutil import resolve_name

from lowprec_plugin.version import __version__

LIGHTNING = ("fit", "validate", "test", "predict")
#: The function of each command, by import path, and what it does.
OWN = {
    "poc": (
        "lowprec_plugin.poc:run_poc",
        "Train your own module in float32 and in fixed-point side by side, and write a report.",
    ),
    "poc report": (
        "lowprec_plugin.poc.report.command:run_report",
        "Write a proof of concept's report again, from its files alone.",
    ),
    "tune": (
        "lowprec_plugin.tune:tune",
        "Find the narrowest formats that keep a metric of your own network, and write a configuration.",
    ),
    "bench": (
        "lowprec_plugin.bench.run:run_bench",
        "Time the fused step and a training step against float32's.",
    ),
    "bench allreduce": (
        "lowprec_plugin.bench.allreduce:run_allreduce",
        "Time gradients on your own network, in float32 and in fixed-point.",
    ),
    "bench emulation": (
        "lowprec_plugin.bench.emulation:run_emulation",
        "Time a training step of emulated arithmetic against float32's.",
    ),
    "plan": (
        "lowprec_plugin.plan.command:run_plan",
        "Predict the bytes that each GPU holds and sends, before anything is bought or run.",
    ),
    "inspect": ("lowprec_plugin.checkpoints.inspect:run_inspect", "Show what a checkpoint stores how."),
    "export": ("lowprec_plugin.export:run_export", "Write a checkpoint's weights for hardware or another tool."),
    "cost": ("lowprec_plugin.export:run_cost", "Estimate a network on the systolic array of Gupta et al. 2015."),
}
#: Commands whose arguments without a default are given by place.
BY_PLACE = ("inspect", "poc report")
USAGE = """usage: lowprec COMMAND [options]

  poc                             train your own module in float32 and in fixed-point, write a report to decide on
  poc report FOLDER               write its report again, from its files alone
  tune                            find the narrowest formats for your own network, write a configuration
  bench                           time the fused step and a training step against float32's
  bench allreduce                 time gradients on your own network; run it with torchrun for several hosts
  bench emulation                 time a training step of emulated arithmetic against float32's
  plan                            predict bytes per GPU, by kind, beside float32 and others
  inspect CHECKPOINT              formats, bytes, saturated codes and exponents of a checkpoint, by tensor
  export                          write weights as safetensors, C, HLS, ONNX or a plain float state_dict
  cost                            estimate DSPs, cycles and G-ops/s on the array of Gupta et al. 2015
  fit, validate, test, predict    LightningCLI: lowprec fit --config configs/digits.yaml

lowprec COMMAND --help lists a command's options. lowprec --version prints the version."""


#: Of a command whose reader has gone, such as head: as a shell has it for those that SIGPIPE ends.
UNREAD = 128 + 13


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit status."""
    try:
        try:
            return _run(arguments)
        finally:
            # Here, and not when the interpreter ends: it would complain. There may be no standard output at all.
            print(end="", flush=True)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be written
        return UNREAD


def _reader_has_gone() -> bool:
    """Whether it was standard output that broke, and not a pipe or connection of the command's own."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in pipe.poll(0))


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        sys.path.insert(0, os.getcwd())  # where import paths begin, as with python -m; a script begins in its own
    command = given[0] if given else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command in LIGHTNING:
        from lowprec_plugin.cli.fit import run_lightning

        return run_lightning(command, None if arguments is None else given)
    if " ".join(given[:2]) in OWN:
        return _call(" ".join(given[:2]), given[2:])
    if command in OWN:
        return _call(command, given[1:])
    print(f"lowprec: there is no command {command!r}\n\n{USAGE}", file=sys.stderr)
    return 2


def _call(command: str, given: Sequence[str]) -> int:
    from jsonargparse import ArgumentParser

    from lowprec_plugin.experiments import raised_in, users_line
    from lowprec_plugin.text.option_error import OptionError

    path, description = OWN[command]
    function = resolve_name(path)
    parser = ArgumentParser(prog=f"lowprec {command}", description=description)
    parser.add_function_arguments(function, as_positional=command in BY_PLACE)
    options = parser.parse_args(given)
    try:
        function(**vars(options))
    except BrokenPipeError:
        raise
    except Exception as error:
        # OSError: a path that cannot be read or written, which it names; the other, which takes seconds to import, is
        # Lightning's ValueError.
        if not isinstance(error, ValueError | OSError) and type(error).__name__ != "MisconfigurationException":
            raise
        if isinstance(error, OptionError):
            message = error.on_command_line(vars(options))
        elif raised_in(error, "lowprec_plugin"):
            message = str(error)
        else:  # of the user's own code, whose names are its own
            message = f"{error}{users_line(error)}"
        print(f"lowprec {command}: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
