"""`trl-credit compare RECIPE.yaml`: trains a recipe with several credit methods and seeds, and reports what differs beyond
noise.

If interrupted, the same command continues. Methods and seeds can be added later; other settings are a new comparison.
`trl-credit compare report FOLDER` redoes statistics and pictures. Any field of the recipe can be given as an option.
"""

import argparse
import difflib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .._util.help import Paragraphs
from .._util.settings import AtLeast1, check_value
from .._util.text import prepare_terminal, safe_lines, safe_text
from .._util.words import with_file_named


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Exits with 2 for bad settings or folders, 1 if a run failed, 130 on SIGINT, 143 on SIGTERM."""
    argv = with_file_named(sys.argv[1:] if argv is None else argv)
    prepare_terminal()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from .run import Stopped

    try:
        if argv and argv[0] == "report":
            _report(argv[1:])
        elif argv and not argv[0].startswith("-"):
            _fail(f"unknown command {argv[0]!r}. Did you mean 'report', or --config {argv[0]}?")
        else:
            _compare(argv)
    except KeyboardInterrupt as error:
        print("\nStopped. Run the same command to continue: finished runs are kept.", file=sys.stderr)
        raise SystemExit(143 if isinstance(error, Stopped) else 130) from error


def _fail(message: Any, command: str = "compare") -> NoReturn:
    print(f"trl-credit {command}: error: {safe_lines(message)}", file=sys.stderr)
    raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="trl-credit compare",
        usage="trl-credit compare [--config] RECIPE.yaml [--methods METHOD ...] [--seeds SEED ...] [options]",
        description=__doc__,
        formatter_class=Paragraphs,
        allow_abbrev=False,
    )
    result.error = _fail
    add = result.add_argument
    add(
        "--config",
        type=Path,
        required=True,
        help="recipe; its `compare` section may set any of the options below from `methods` to `tune_by`",
    )
    add(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="names, paths, lists ('[gcpo, otb]') or mappings, with a `label` ('{method: [gcpo, otb], label: both}'); the "
        "bare name of the recipe's own method has the recipe's parameters",
    )
    add(
        "--seeds",
        nargs="+",
        metavar="SEED",
        help="how many (5: seeds 0 to 4), several seeds (3 7), or a list, also of one ('[7]'); default: 1",
    )
    add("--output_dir", type=Path, help="default: outputs/compare/NAME_OF_RECIPE")
    add("--baseline", help="label of the method the others are compared with (default: the first)")
    add(
        "--ceiling",
        help="label of the method that stands for perfect credit: tells which share of its lead over the baseline each "
        "method has",
    )
    add("--target_reward", type=float, help="also compare the updates and tokens until this reward")
    add(
        "--at_target",
        nargs="+",
        metavar="METRIC",
        help="also compare these logged metrics at the update that reaches the target",
    )
    add(
        "--tune",
        nargs="+",
        metavar="FIELD=VALUES",
        help="first give each method the best of these values of the recipe's fields, such as learning_rate=1e-5,3e-5,1e-4",
    )
    add(
        "--tuning_seeds",
        nargs="+",
        metavar="SEED",
        help="how many seeds choose the values (default: 3, from 1000 on), several seeds, or a list ('[7]'); none of "
        "`--seeds`",
    )
    add("--tune_by", metavar="MEASURE", help="mean_reward (default) or accuracy")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--keep_models", action="store_true", help="keep the trained models")
    add("--num_processes", type=int, help="processes of each run")
    add("--accelerate_config", help="as of `trl-credit train`")
    return result


def check_early(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Finds what is wrong with names, methods, seeds and `tune` before torch and TRL are imported. The plan checks the rest.

    Args:
        arguments: The command's own options.
        overrides: Other words, fields of the recipe.

    Raises:
        ValueError, TypeError: The error that would come later.
    """
    from ..methods.spec import check_spec, read_spec
    from ..recipe.early import check_names, known_fields, refuse_empty_credit, set_environment, words_of
    from .plan import check_overrides, check_own_fields, listed_methods, parse_seeds, split_method, take_section
    from .tuning import check_apart, check_tuned, parse_tuning

    words = ["--config", str(arguments.config), *overrides]
    fields = words_of(words)
    check_names(words, fields)
    set_environment(fields)
    check_overrides(overrides)
    section = take_section(fields)

    def chosen(name: str, default: Any = None) -> Any:
        given = getattr(arguments, name)
        return section.get(name, default) if given is None else given

    refuse_empty_credit(fields)
    recipe_credit = read_spec(fields.get("credit"))
    own = recipe_credit.get("method") if isinstance(recipe_credit, Mapping) else recipe_credit
    for method in listed_methods(chosen("methods")):
        if own is not None and method == own:  # has the recipe's parameters
            continue
        credit, _, _ = split_method(method)
        check_own_fields(credit, known_fields(fields) or ())
        check_spec(credit)
    seeds = parse_seeds(chosen("seeds", 1))
    tuning = parse_tuning(*map(chosen, ("tune", "tuning_seeds", "tune_by")))
    if tuning is not None:
        check_tuned(tuning.values, known_fields(fields))
        check_apart(seeds, tuning.seeds)


def _compare(argv: list[str]) -> None:
    from ..recipe.names import recipe_field_names

    arguments, overrides = parser().parse_known_args(argv)
    if importlib.util.find_spec("matplotlib") is None:  # check now, not after hours of training
        _fail("the pictures need matplotlib: pip install 'trl-credit[analysis]'")
    own = [word for action in parser()._actions for word in action.option_strings if word.startswith("--")]
    known = recipe_field_names() or ()
    for word in overrides:
        close = difflib.get_close_matches(word.partition("=")[0], own, n=1, cutoff=0.8)
        if word.startswith("--") and close and word.lstrip("-").partition("=")[0] not in known:
            _fail(f"unknown option {word!r}. Did you mean {close[0]!r}?")
    for name in ("seeds", "tuning_seeds"):
        given = getattr(arguments, name)
        setattr(arguments, name, given[0] if given and len(given) == 1 else given)
    launch = []
    for name in ("num_processes", "accelerate_config"):
        if getattr(arguments, name) is not None:
            launch += [f"--{name}", str(getattr(arguments, name))]
    if launch and arguments.jobs > 1:
        _fail("`--jobs` has no effect with several processes a run: these run one after the other.")
    try:
        check_value("--jobs", arguments.jobs, AtLeast1)
        check_early(arguments, overrides)
    except (ValueError, TypeError) as error:
        _fail(error)
    from rich.console import Console

    from .._util.files import RunFolderError
    from ..evaluation.store import RunFolder
    from .plan import make_plan, write_plan
    from .results import read_runs
    from .run import in_process, run_all
    from .tuning import plan_tuning, tune

    output_dir = arguments.output_dir or Path("outputs/compare") / arguments.config.stem
    folder = RunFolder(output_dir)
    console = Console(highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(safe_text(line))

    common = {
        "config": arguments.config,
        "output_dir": output_dir,
        "overrides": overrides,
        "methods": arguments.methods,
        "seeds": arguments.seeds,
        "launch": launch,
        **{name: getattr(arguments, name) for name in ("baseline", "ceiling", "target_reward", "at_target")},
    }
    given = (arguments.tune, arguments.tuning_seeds, arguments.tune_by)
    try:
        # Checks everything before the first run, also where the values are not chosen yet
        tuned = in_process(plan_tuning, given=given, **common)
        plan = in_process(make_plan, **common) if tuned is None else None
        folder.lock()
    except (ValueError, RunFolderError) as error:
        _fail(error)
    try:
        if tuned is not None:
            methods, record = tune(*tuned, output_dir, arguments.jobs, say)
            plan = in_process(make_plan, **(common | {"methods": methods}), tuning=record)
        write_plan(output_dir, plan)
        failed = run_all(
            plan,
            output_dir,
            jobs=arguments.jobs,
            keep_models=arguments.keep_models,
            say=say,
        )
        if failed:
            names = "; ".join(f"{label}, seed {seed}" for label, seed in failed)
            say(f"Failed: {names}. The same command tries again.")
        if not failed or any(read_runs(output_dir, plan).values()):
            _write(output_dir)
    except (ValueError, RunFolderError) as error:
        _fail(error)
    finally:
        folder.close()
    if failed:
        raise SystemExit(1)


def _report(argv: list[str]) -> None:
    from .._util.files import RunFolderError

    arguments = argparse.ArgumentParser(
        prog="trl-credit compare report", description="Makes statistics and pictures anew from what is on disk."
    )
    arguments.add_argument("folder", type=Path, help="folder of the comparison")
    try:
        _write(arguments.parse_args(argv).folder)
    except (ValueError, RunFolderError) as error:
        _fail(error, "compare report")


def _write(output_dir: Path) -> None:
    from .output import write_results

    write_results(output_dir)
