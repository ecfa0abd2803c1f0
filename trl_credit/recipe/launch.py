"""Runs a command in this process or on several."""

import argparse
import contextlib
import importlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

from .._util.text import safe_lines
from .._util.values import is_true
from .._util.words import with_file_named
from .._util.yaml import read_mapping
from .early import check_early, precision_clash, set_environment, words_of


# accelerate's options for one of several machines
_MACHINES = ("num_machines", "machine_rank", "main_process_ip", "main_process_port")


def launch(argv: list[str], command: str, module: str, training: Sequence[str] | None = None) -> None:
    """Runs a command's module in this process, or on several, also of several machines, if launcher options say so.

    Unlike `accelerate launch`, it ends with the status of the process that failed first: 143 after SIGTERM.

    Args:
        argv: Words of the command line.
        command: The command's name, for messages.
        module: Its module.
        training: Words of `trl-credit train` for the same training, if they are not in `argv`.
    """
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--accelerate_config")
    launcher.add_argument("--num_processes", type=int)
    launcher.add_argument("--num_machines", type=int)
    launcher.add_argument("--machine_rank", type=int)
    launcher.add_argument("--main_process_ip")
    launcher.add_argument("--main_process_port", type=int)
    asked, rest = launcher.parse_known_args(argv)
    rest = with_file_named(rest)
    if asked.num_processes is not None and asked.num_processes < 1:
        print(
            f"trl-credit {command}: error: `--num_processes` must be at least 1, got {asked.num_processes}.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    machines = {name: value for name, value in vars(asked).items() if name in _MACHINES and value is not None}
    if machines and asked.accelerate_config is None:
        print(
            f"trl-credit {command}: error: `--{next(iter(machines))}` needs `--accelerate_config`, such as the repository's "
            "recipes/accelerate/zero3_multinode.yaml.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    if command == "train":
        try:
            check_early(rest)
            set_environment(words_of(rest))
        except (ValueError, TypeError) as error:
            print(f"trl-credit {command}: error: {safe_lines(error)}", file=sys.stderr)
            raise SystemExit(2) from error
    if asked.accelerate_config is None and asked.num_processes is None:
        importlib.import_module(module).main(rest)
        return
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as torchrun
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    target = ["-m", module.removesuffix(".cli"), *rest]
    options = []
    if asked.accelerate_config is not None:
        try:
            options += resolve_accelerate_config_argument(["--accelerate_config", asked.accelerate_config])
        except ValueError as error:
            print(f"trl-credit {command}: error: `--accelerate_config`: {safe_lines(error)}", file=sys.stderr)
            raise SystemExit(2) from error
        if command == "train":
            _check_precision(options[-1], rest)
    if asked.num_processes is not None:
        options += ["--num_processes", str(asked.num_processes)]
    for name, value in machines.items():
        options += [f"--{name}", str(value)]
    with exit_code():
        on_cpu = _uses_cpu(rest if training is None else training)
        devices = 0 if on_cpu or not torch.accelerator.is_available() else torch.accelerator.device_count()
        if asked.accelerate_config is None and 0 < devices < asked.num_processes:  # accelerate would start one
            print(
                f"trl-credit {command}: error: `--num_processes` is {asked.num_processes}, but this machine has {devices} "
                f"accelerator{'s' * (devices > 1)}.",
                file=sys.stderr,
            )
            raise SystemExit(2)
        if asked.accelerate_config is None and not devices:
            # accelerate would start a single process unless MPI is available
            parsed = get_args_parser().parse_args(
                ["--standalone", "--nproc_per_node", str(asked.num_processes), *target[:2]]
            )
            parsed.training_script_args = rest  # the parser would take them for abbreviations of its own options
            torchrun(parsed)
        else:
            launch_command(launch_command_parser().parse_args([*options, *target]))


def _uses_cpu(words: Sequence[str]) -> bool:
    """Whether a training's words ask for the CPU, also without a value (`--use_cpu`)."""
    asked = words_of([*words, "--"]).get("use_cpu")  # a flag without a value has the next one as its value
    return is_true(asked) or str(asked).startswith("--")


def _check_precision(launcher: str, words: list[str]) -> None:
    """Exits with 2 if the launcher's file cannot be read, or starts DeepSpeed in another precision than the recipe's."""
    try:
        found = read_mapping(launcher, {}, "launcher configuration", "--accelerate_config")
        if clash := precision_clash(found, launcher, words_of(words)):
            raise ValueError(
                f"{clash}. Set `bf16: true`, or without a GPU use recipes/accelerate/ddp_cpu.yaml of the repository or a "
                "copy with `mixed_precision: 'no'`."
            )
    except ValueError as error:
        print(f"trl-credit train: error: {safe_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error


@contextlib.contextmanager
def exit_code() -> Iterator[None]:
    """Exits with the code of the process that failed first, which has printed why, without the launcher's traceback."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        yield
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code > 0 else 128 - code) from error
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    except ImportError as error:  # the config needs DeepSpeed, which is not installed
        print(f"trl-credit: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from error
