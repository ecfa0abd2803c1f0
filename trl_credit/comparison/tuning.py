"""Tuning: before methods are compared, each gets the best of some values of the recipe's fields, on seeds of its own.

A comparison at one learning rate measures the learning rate too, because credit changes the size of the gradient. The
seeds that choose a method's values are never among those that decide.
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .._util.retired import unknown_fields
from .._util.settings import check_value
from .._util.text import nearest
from .._util.yaml import load_mapping
from .plan import (
    FIRST_TUNING_SEED,
    Method,
    Plan,
    check_choices,
    check_tuned_alike,
    check_varied,
    make_plan,
    parse_methods,
    parse_seeds,
    read_plan,
    read_recipe,
    run_folder,
    write_plan,
)
from .run import log_end, run_all


FOLDER = "tuning"
MEASURES = ("mean_reward", "accuracy")


@dataclass(frozen=True)
class Tuning:
    """What is tuned, and on which seeds.

    Args:
        values: Values to try, by field of the recipe. Of several fields, every combination is tried.
        seeds: Seeds that choose the values.
        by: What the best value has most of: `mean_reward` over all updates, or the final `accuracy`.
    """

    values: dict[str, list[Any]]
    seeds: list[int]
    by: str = "mean_reward"

    def combinations(self) -> list[dict[str, Any]]:
        """Every choice of one value for each field."""
        return [dict(zip(self.values, chosen, strict=True)) for chosen in itertools.product(*self.values.values())]


def parse_tuning(values: Any, seeds: Any = None, by: str | None = None) -> Tuning | None:
    """Reads what to tune. `None` if nothing is.

    Args:
        values: A mapping of fields to lists of values, or words such as `learning_rate=1e-5,3e-5`.
        seeds: A number of seeds, which are counted from [`~.plan.FIRST_TUNING_SEED`], or a list of seeds; by default 3.
        by: One of [`MEASURES`].

    Raises:
        ValueError: A field without two different values, or listed twice; seeds or `by` without anything to tune.
    """
    if not values:
        for name, value in (("tuning_seeds", seeds), ("tune_by", by)):
            if value is not None:
                raise ValueError(f"`{name}` has no effect without `tune`: give --tune learning_rate=1e-5,3e-5,1e-4.")
        return None
    found: dict[str, list[Any]] = {}
    pairs = (
        values.items() if isinstance(values, Mapping) else map(_pair, [values] if isinstance(values, str) else values)
    )
    for name, listed in pairs:
        name = name.replace("-", "_").strip()
        if name in found:
            raise ValueError(f"`tune`: {name!r} is listed twice.")
        listed = list(listed) if isinstance(listed, (list, tuple)) else [listed]
        found[name] = [value for i, value in enumerate(listed) if value not in listed[:i]]
        if len(found[name]) < 2:
            raise ValueError(
                f"`tune`: {name!r} needs at least two different values, got {listed}: {name}=VALUE,VALUE,... tries several. "
                "For a value that is known, write it in the recipe, or as `settings` of one method."
            )
    seeds = parse_seeds(3 if seeds is None else seeds, "tuning_seeds", FIRST_TUNING_SEED)
    if by is not None and by not in MEASURES:
        raise ValueError(f"`tune_by` is {by!r}. {nearest(str(by), MEASURES)}")
    return Tuning(found, seeds, by or MEASURES[0])


def check_apart(deciding: Sequence[int], tuning: Sequence[int]) -> None:
    """Raises `ValueError` if a seed would both choose the values and judge them."""
    if shared := sorted(set(deciding) & set(tuning)):
        both, decide, choose = (", ".join(map(str, seeds)) for seeds in (shared, deciding, tuning))
        raise ValueError(
            f"`tuning_seeds` ({choose}) and `seeds` ({decide}) share {both}, which would both choose the values and judge "
            "them. Change one of the two."
        )


def check_tuned(names: Collection[str], known: Collection[str] | None) -> None:
    """Raises `ValueError` if `tune` names a field that cannot be tuned.

    Args:
        names: What it names.
        known: All fields of a recipe; `None` checks only which may differ.
    """
    problem = None if known is None else unknown_fields(dict.fromkeys(names), known, "in `tune`")
    if problem:
        raise ValueError(problem)
    check_varied(names, "`tune`")


def check_values(values: Mapping[str, Sequence[Any]], types: Mapping[str, Any]) -> None:
    """As [`check_tuned`], and raises `ValueError` if a field cannot have one of its values.

    Args:
        values: Values to try, by field.
        types: The types of the recipe's fields, by name.
    """
    check_tuned(values, types)
    for name, listed in values.items():
        for value in listed:
            try:
                check_value(name, value, types[name])
            except ValueError as error:
                raise ValueError(f"`tune`: {error}") from None


def _pair(word: Any) -> tuple[str, list[Any]]:
    name, equals, text = str(word).partition("=")
    if not equals or not name.strip():
        raise ValueError(f"`tune`: write FIELD=VALUE,VALUE,..., got {word!r}.")
    text = text if text.lstrip().startswith("[") else f"[{text}]"
    try:
        return name, load_mapping(f"values: {text}")["values"]
    except ValueError as error:
        raise ValueError(f"`tune`: the values of {name!r} are {error}.") from None


def plan_tuning(
    config: Path,
    output_dir: Path,
    given: tuple[Any, Any, Any],
    overrides: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | int | None = None,
    launch: Sequence[str] = (),
    **choices: Any,
) -> tuple[Tuning, Plan, list[Method]] | None:
    """Plans the runs that choose each method's values, as a comparison in the subfolder `tuning`.

    Args:
        given: The command line's arguments of [`parse_tuning`]. The recipe's `compare` section supplies what is `None`.
        **choices: `baseline`, `ceiling`, `target_reward` and `at_target` of the comparison, which are checked here.

    Returns:
        What is tuned, the plan with a method for each method and combination, and the methods themselves; `None` if
        there is nothing to tune.

    Raises:
        ValueError: As in `make_plan`; a seed both tunes and decides, or a method sets a tuned field itself.
        RunFolderError: The comparison in the folder was tuned otherwise, or not at all.
    """
    from .._util.arguments import field_types
    from ..recipe.recipe import recipe_classes

    recipe, section = read_recipe(Path(config))
    names = ("tune", "tuning_seeds", "tune_by")
    tuning = parse_tuning(*(section.get(n) if value is None else value for n, value in zip(names, given, strict=True)))
    if tuning is None:
        return None
    check_values(tuning.values, field_types(recipe_classes(["--config", str(config), *overrides])))
    asked, _ = parse_methods(section.get("methods") if methods is None else methods, recipe.get("credit"))
    before = read_plan(output_dir) if (Path(output_dir) / "plan.json").exists() else None
    if before is not None:
        check_tuned_alike(before, asdict(tuning), output_dir)
    check_choices(section, before, asked, **choices, narrowed=methods is not None)
    check_apart(parse_seeds(section.get("seeds", 1) if seeds is None else seeds), tuning.seeds)
    for method in asked:
        if own := sorted(set(method.settings) & set(tuning.values)):
            raise ValueError(f"`tune`: the method {method.label!r} sets {own[0]!r} itself. Leave one of the two out.")
    arms = [
        {**method.credit, "label": arm_label(method.label, values), "settings": {**method.settings, **values}}
        for method in asked
        for values in tuning.combinations()
    ]
    plan = make_plan(
        config,
        Path(output_dir) / FOLDER,
        overrides=overrides,
        methods=arms,
        seeds=tuning.seeds,
        baseline=arms[0]["label"],
        ceiling=False,
        launch=launch,
    )
    return tuning, plan, asked


def tune(
    tuning: Tuning,
    plan: Plan,
    methods: Sequence[Method],
    output_dir: Path,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs what is missing of the tuning, and chooses.

    Args:
        tuning: What is tuned.
        plan: Its runs, see [`plan_tuning`].
        methods: The methods.
        output_dir: Folder of the comparison.
        jobs: Runs at a time.
        say: Called with a line for each finished run and each choice.

    Returns:
        The methods with their chosen values, as `make_plan` takes them, and the record of the tuning. Values with
        which a run failed are not chosen; the record has the reason.

    Raises:
        ValueError: Nothing can be chosen for a method.
    """
    from .results import read_runs

    folder = Path(output_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(folder, plan)
    say(f"Tuning of {', '.join(tuning.values)} on seeds {', '.join(map(str, tuning.seeds))}:")
    # What failed before the choice stays failed: another try could change a choice that runs already rest on
    failed = _failed_before(output_dir)
    labels, seeds = plan.asked
    todo = replace(plan, asked=([label for label in labels if label not in failed], seeds))
    for label, seed in run_all(todo, folder, jobs=jobs, say=say):
        log = run_folder(folder, plan.method(label), seed) / "log.txt"
        failed.setdefault(label, f"seed {seed}: {log_end(log, 1)[0].strip()}")
    record = record_of(tuning, choose(tuning, methods, read_runs(folder, plan), failed))
    for line in sentences_of(record):
        say(line)
    return tuned_methods(methods, record["rows"]), record


def _failed_before(output_dir: Path) -> dict[str, str]:
    """Why values failed, by label, of the methods whose values a comparison in the folder has chosen."""
    if not (Path(output_dir) / "plan.json").exists():
        return {}
    rows = (read_plan(output_dir).tuning or {"rows": []})["rows"]
    return {arm_label(row["label"], row["values"]): row["failed"] for row in rows if row.get("failed")}


def arm_label(label: str, values: Mapping[str, Any]) -> str:
    return " ".join([label, *(f"{name}={value}" for name, value in values.items())])


def choose(
    tuning: Tuning,
    methods: Sequence[Method],
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]],
    failed: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Chooses each method's values: those with the highest mean over the tuning seeds.

    Args:
        tuning: What was tuned.
        methods: The methods.
        runs: Finished runs of the tuning, by label of method and values, and by seed.
        failed: Why a run failed, by label of method and values.

    Returns:
        A row for each method and combination: `label`, `values`, `mean` over seeds with the ends `low` and `high` of
        Student's interval, `by_seed`, `chosen`, `at_edge`, the numeric fields whose chosen value is the least or
        greatest tried, and `failed`, the reason or `None`.

    Raises:
        ValueError: No combination of a method has a value for every seed.
    """
    from ..statistics.paired import interval
    from .results import LEVEL, run_values

    rows = []
    for method in methods:
        own = []
        for values in tuning.combinations():
            arm = arm_label(method.label, values)
            finished, reason = runs.get(arm, {}), (failed or {}).get(arm)
            by_seed = {seed: run_values(run, 1, None).get(tuning.by, math.nan) for seed, run in finished.items()}
            by_seed = {str(seed): by_seed[seed] for seed in tuning.seeds if math.isfinite(by_seed.get(seed, math.nan))}
            whole = len(by_seed) == len(tuning.seeds) and reason is None
            mean, low, high = interval(list(by_seed.values()), LEVEL) if by_seed else (None, None, None)
            own.append(
                {"label": method.label, "values": values, "mean": mean, "low": low, "high": high, "by_seed": by_seed}
                | {"chosen": False, "at_edge": [], "failed": reason, "whole": whole}
            )
        candidates = [row for row in own if row["whole"]]
        if not candidates and all(row["failed"] for row in own):
            reasons = "; ".join(f"{_written(row['values'])} ({row['failed']})" for row in own)
            raise ValueError(
                f"`tune`: every value of {method.label!r} failed: {reasons}. The same command tries again; see the runs' "
                "log.txt."
            )
        if not candidates:
            wanted = "evaluate in the recipe (`eval`)" if tuning.by == "accuracy" else "see the runs' log.txt"
            raise ValueError(
                f"`tune`: no value of {method.label!r} has the {tuning.by.replace('_', ' ')} of every seed: {wanted}."
            )
        best = max(candidates, key=lambda row: row["mean"])
        best["chosen"], best["at_edge"] = True, _at_edge(tuning, best["values"])
        rows += [{key: value for key, value in row.items() if key != "whole"} for row in own]
    return rows


def _at_edge(tuning: Tuning, chosen: Mapping[str, Any]) -> list[str]:
    numeric = {name: values for name, values in tuning.values.items() if _numeric(values)}
    return [name for name, values in numeric.items() if chosen[name] in (min(values), max(values))]


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def tuned_methods(methods: Sequence[Method], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The methods with their chosen values, as `make_plan` takes them."""
    chosen = {row["label"]: row["values"] for row in rows if row["chosen"]}
    return [
        {**method.credit, "label": method.label, "settings": {**method.settings, **chosen[method.label]}}
        for method in methods
    ]


def record_of(tuning: Tuning, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What plan.json and comparison.json keep of the tuning."""
    return {**asdict(tuning), "rows": list(rows)}


def sentences_of(record: Mapping[str, Any]) -> list[str]:
    """What was chosen, what failed, and which choices lie at the edge of what was tried."""
    chosen = [row for row in record["rows"] if row["chosen"]]
    listed = "; ".join(f"{row['label']} {_written(row['values'])}" for row in chosen)
    seeds = ", ".join(map(str, record["seeds"]))
    found = [f"Chosen by the {record['by'].replace('_', ' ')} of seeds {seeds}, which decide nothing else: {listed}."]
    if failed := [row for row in record["rows"] if row.get("failed")]:
        reasons = "; ".join(f"{row['label']} {_written(row['values'])} ({row['failed']})" for row in failed)
        found.append(
            f"Failed, and so not chosen: {reasons}. If the reason has passed, tune again in another `--output_dir`."
        )
    for name, values in record["values"].items():
        if len(values) == 2 and _numeric(values):
            found.append(
                f"Two values of {name} cannot show an optimum: the better one is at the edge of what was tried. Try three "
                "or more."
            )
            continue
        edge = [f"{row['label']} ({row['values'][name]})" for row in chosen if name in row["at_edge"]]
        if edge:
            found.append(
                f"The best {name} of {', '.join(edge)} is at the edge of what was tried. There may be a better one beyond: "
                "widen `tune`."
            )
    return found


def table_of(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: every method's mean and interval at every combination, with the chosen one starred."""
    combinations = []
    for row in record["rows"]:
        if row["values"] not in combinations:
            combinations.append(row["values"])
    labels = list(dict.fromkeys(row["label"] for row in record["rows"]))

    def cell(label: str, values: Mapping[str, Any]) -> str:
        row = next((r for r in record["rows"] if r["label"] == label and r["values"] == values), None)
        if row is not None and row.get("failed"):
            return "failed"
        if row is None or row["mean"] is None:
            return "\u2013"
        spread = "" if row["low"] is None else f" \u00b1 {row['mean'] - row['low']:.3f}"
        return f"{row['mean']:.3f}{spread}{' *' if row['chosen'] else ''}"

    title = record["by"].replace("_", " ")
    headings = [title, *map(_written, combinations)]
    return headings, [[label, *(cell(label, values) for values in combinations)] for label in labels]


def _written(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
