"""`trl-credit bench`: CreditBench, which measures whether credit lands on the tokens that decided the outcome."""

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path

from .._util.quiet import quiet_libraries
from .._util.text import prepare_terminal, safe, safe_lines


_SETTINGS = (
    *("model", "reference", "methods", "tasks", "rendering", "num_items"),
    *("seed", "dtype", "output_dir", "groups", "target_groups"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        _fail(message)


def _fail(message: object) -> None:
    print(f"trl-credit bench: error: {safe_lines(' '.join(str(message).split()))}", file=sys.stderr)
    raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="trl-credit bench", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--true",
        action="store_true",
        help="compare credit with the true advantages of tokens instead, from sampled continuations; it has settings of its "
        "own: `trl-credit bench --true --help`",
    )
    parser.add_argument("--model", help="path or hub id; by default the embedded model")
    parser.add_argument("--reference", help="reference policy of methods that compare with one (dgpo)")
    parser.add_argument(
        "--methods",
        nargs="+",
        help="names, paths of classes, or mappings or lists; by default every registered method that can be scored "
        "here (the report names the others and why). Baselines are always there",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        help="planted_error, filler_words, style, altered_copy, length, and the errors of the policy itself: own_error, "
        "own_error_style (compact rendering only); by default all",
    )
    parser.add_argument("--rendering", help="compact or text; by default what fits the tokenizer")
    parser.add_argument(
        "--num_items",
        type=int,
        help="items per task (200; 64 for a model of your own), or what there is of own errors",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="dtype to load a model in")
    parser.add_argument("--groups", type=int, help="groups whose gradients are compared (256); 0 for no gradients")
    parser.add_argument(
        "--target_groups", type=int, help="other groups, which the low-noise gradient is made of (1024)"
    )
    parser.add_argument("--no_gradients", action="store_true", help="leave the gradients out")
    parser.add_argument("--no_drift", action="store_true", help="train no policies that drift from the embedded model")
    parser.add_argument(
        "--quick", action="store_true", help="few items, samples and updates: a minute or two, and noise"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs the command. On an error, prints one line and exits with 2."""
    argv = sys.argv[1:] if argv is None else argv
    if "--true" in argv:
        from .true.cli import main as main_true

        main_true([word for word in argv if word != "--true"])
        return
    prepare_terminal()
    arguments = _parser().parse_args(argv)
    if importlib.util.find_spec("matplotlib") is None:
        _fail("CreditBench needs matplotlib: pip install 'trl-credit[analysis]'")
    if arguments.model is None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    quiet_libraries()
    from ..extras.effect import NothingTrainedError
    from .report import show
    from .run import BenchSettings, run

    if arguments.model is None:
        torch.set_num_threads(1)  # fastest for such a small model
    chosen = {name: value for name, value in vars(arguments).items() if name in _SETTINGS and value is not None}
    chosen |= {name: tuple(chosen[name]) for name in ("methods", "tasks") if name in chosen}
    if arguments.model is not None:
        chosen.setdefault("num_items", 64)
    if arguments.quick:
        chosen.setdefault("num_items", 8)
        chosen |= {"drift": (0, 3), "drift_completions": 32}
        chosen = {"groups": 16, "target_groups": 64} | chosen
    if arguments.no_drift:
        chosen["drift"] = (0,)
    if arguments.no_gradients:
        chosen["groups"] = 0
    start = time.perf_counter()
    try:
        results = run(
            BenchSettings(**chosen), progress=lambda message: print(safe_lines(message), file=sys.stderr, flush=True)
        )
    except (ValueError, TypeError, OSError, ImportError, NothingTrainedError) as error:
        _fail(error)
    show(results)
    print(
        f"{safe(arguments.output_dir)}: bench.json, bench.md and the pictures, after {time.perf_counter() - start:.0f} s."
    )


if __name__ == "__main__":
    main()
