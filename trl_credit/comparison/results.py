"""Results of a comparison: turns runs on disk into comparison.json, and that into tables, pictures and sentences."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._util.files import RunFolderError, read_json
from .._util.moved import moved_names
from .._util.text import nearest, safe
from ..methods.registry import build_credit
from ..statistics.paired import (
    area,
    band,
    enough_seeds,
    first_reached,
    holm,
    interval,
    paired,
    share_of,
    smoothed,
    verdict,
)
from ..trainer.config import CreditGRPOConfig
from .plan import Method, Plan, run_folder
from .scale import gradient_scale, scale_sentence


__getattr__ = moved_names(__name__)


LEVEL = 0.95
# Curves drawn over updates
CURVES = {
    "reward": "reward",
    "entropy": "entropy, nats",
    "completions/mean_length": "tokens of a completion",
    "credit/effective_fraction": "effective token fraction",
}


@dataclass(frozen=True)
class Quantity:
    """A quantity by which runs are compared.

    Args:
        name: Key in comparison.json.
        title: Name for display.
        larger_is_better: Direction of improvement. `None` if unknown.
        digits: Digits after the point.
        scale: 100 for shares shown in percent.
        ranks: Runs may lack a value (target not reached), which counts as larger than all others.
    """

    name: str
    title: str
    larger_is_better: bool | None
    digits: int
    scale: float = 1.0
    ranks: bool = False

    def text(self, value: float | None) -> str:
        if value is None:
            return "\u2013"
        if math.isinf(value):
            return "not reached"
        return f"{self.scale * value:,.{self.digits}f}".replace("-", "\u2212")

    def signed(self, value: float | None) -> str:
        if value is None:
            return "\u2013"
        text = self.text(abs(value))
        if not text.strip("0.,"):
            return text
        return ("+" if value > 0 else "\u2212") + text


QUANTITIES = (
    Quantity("mean_reward", "mean reward", True, 3),
    Quantity("last_reward", "reward, last quarter", True, 3),
    Quantity("accuracy", "final accuracy, %", True, 1, scale=100),
    Quantity("updates_to_target", "updates to the target", False, 1, ranks=True),
    Quantity("tokens_to_target", "generated tokens to the target", False, 0, ranks=True),
    Quantity("seconds_per_update", "seconds per update", False, 3),
    Quantity("seconds", "seconds of training steps", False, 1),
)
BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}
_AT_TARGET = "at_target/"


def quantities(at_target: Collection[str] = ()) -> tuple[Quantity, ...]:
    """All quantities, with logged metrics at the update that reaches the target before those of time."""
    logged = [Quantity(_AT_TARGET + name, f"{name} at the target", None, 3) for name in at_target]
    return (*QUANTITIES[:-2], *logged, *QUANTITIES[-2:])


def read_runs(output_dir: Path, plan: Plan) -> dict[str, dict[int, dict[str, Any]]]:
    """Reads the finished runs, by label and seed."""
    found = {}
    for method in plan.methods:
        found[method.label] = {}
        for seed in plan.seeds:
            path = run_folder(output_dir, method, seed) / "run.json"
            if path.exists():
                found[method.label][seed] = read_json(path)
    return found


def _column(run: Mapping[str, Any], name: str) -> np.ndarray:
    column = run["history"].get(name)
    return np.array([math.nan if value is None else value for value in column or []], float)


def run_values(
    run: Mapping[str, Any], window: int, target: float | None, at_target: Collection[str] = ()
) -> dict[str, float]:
    """The quantities of a run. Updates and tokens are infinite, and metrics absent, if the target was not reached."""
    rewards = _column(run, "reward")
    values = {"mean_reward": area(rewards)}
    if run.get("accuracy") is None:
        values["last_reward"] = area(rewards[-max(1, len(rewards) // 4) :])
    else:
        values["accuracy"] = run["accuracy"]
    if target is not None:
        updates = first_reached(smoothed(rewards, window), target)
        tokens = np.nancumsum(_column(run, "generated_tokens"))
        values["updates_to_target"] = updates
        values["tokens_to_target"] = float(tokens[int(updates) - 1]) if math.isfinite(updates) else math.inf
        for name in at_target if math.isfinite(updates) else ():
            logged = smoothed(_column(run, name), window)
            values[_AT_TARGET + name] = float(logged[int(updates) - 1]) if len(logged) else math.nan
    seconds = float(np.nansum(_column(run, "step_time")))
    values["seconds_per_update"] = seconds / max(1, run["updates"])
    values["seconds"] = seconds
    return {name: value for name, value in values.items() if not math.isnan(value)}


def summarize(plan: Plan, runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Computes all statistics of finished runs, as JSON values (`None` if the target was not reached).

    Args:
        plan: The plan.
        runs: Finished runs by label and seed.

    Raises:
        RunFolderError: There are no runs.
    """
    lengths = [len(run["history"]["step"]) for of_method in runs.values() for run in of_method.values()]
    if not lengths:
        raise RunFolderError("There is no finished run.")
    updates = min(lengths)
    window = max(1, updates // 10)
    values = {
        label: {seed: run_values(run, window, plan.target_reward, plan.at_target) for seed, run in of_method.items()}
        for label, of_method in runs.items()
    }
    methods = []
    for method in plan.methods:
        of_method = runs[method.label]
        of_quantity = {}
        for quantity in quantities(plan.at_target):
            known = {
                seed: found[quantity.name] for seed, found in values[method.label].items() if quantity.name in found
            }
            if known:
                of_quantity[quantity.name] = _quantity(list(known.values())) | {
                    "by_seed": {str(seed): _json(value) for seed, value in known.items()}
                }
        methods.append(
            {
                "label": method.label,
                "credit": method.credit | ({"settings": method.settings} if method.settings else {}),
                "seeds": sorted(of_method),
                "missing": sorted(set(plan.seeds) - set(of_method)),
                "quantities": of_quantity,
                "gradient": gradient_scale(
                    of_method.values(),
                    {**plan.settings, **method.settings}.get("max_grad_norm", CreditGRPOConfig.max_grad_norm),
                ),
                "curves": {name: _curve(of_method, name, updates, window) for name in CURVES},
            }
        )
    jobs = sorted({run["jobs"] for of_method in runs.values() for run in of_method.values()})
    versions = [run["versions"] for of_method in runs.values() for run in of_method.values()]
    return {
        "format": 1,
        "level": LEVEL,
        "updates": updates,
        "window": window,
        "n": next((run["n"] for of_method in runs.values() for run in of_method.values() if run.get("n")), None),
        "baseline": plan.baseline,
        "ceiling": plan.ceiling,
        "target_reward": plan.target_reward,
        "at_target": plan.at_target,
        "seeds": sorted(plan.seeds),
        "methods": methods,
        "differences": _differences(plan, values),
        "shares": _shares(plan, values),
        "notes": [
            *(note for method in plan.methods if (note := _collapse(method, runs[method.label].values()))),
            *_unlogged(plan.at_target, runs),
            *filter(None, [scale_sentence(methods, plan.baseline)]),
            *_notes(methods, jobs, versions),
        ],
        "tuning": plan.tuning,
        "settings": plan.settings,
        "versions": versions[0],
        "command": plan.command,
    }


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _quantity(values: list[float]) -> dict[str, Any]:
    finite = [value for value in values if math.isfinite(value)]
    mean = low = high = None
    if len(finite) == len(values):
        mean, low, high = interval(values, LEVEL)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "median": _json(float(np.median(values))),
        "reached": len(finite),
        "runs": len(values),
    }


def _curve(runs: Mapping[int, Mapping[str, Any]], name: str, updates: int, window: int) -> dict[str, list] | None:
    columns = [_column(run, name)[:updates] for run in runs.values()]
    columns = [smoothed(column, window) for column in columns if len(column) == updates]
    if not columns or np.isnan(columns).all():
        return None
    parts = zip(("mean", "low", "high"), band(np.array(columns), LEVEL), strict=True)
    return {key: [_json(float(value)) for value in part[window - 1 :]] for key, part in parts}


def _differences(plan: Plan, values: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[dict[str, Any]]:
    found = []
    for quantity in quantities(plan.at_target):
        name, compared = quantity.name, []
        for method in plan.methods:
            before, after = values[plan.baseline], values[method.label]
            seeds = [s for s in plan.seeds if name in before.get(s, {}) and name in after.get(s, {})]
            if method.label != plan.baseline and seeds:
                pair = ([of[seed][name] for seed in seeds] for of in (before, after))
                compared.append((method.label, seeds, paired(*pair, level=LEVEL, ranks=quantity.ranks)))
        adjusted = holm([difference.p_value for *_, difference in compared])
        for (label, seeds, difference), p_holm in zip(compared, adjusted, strict=True):
            row = {"quantity": name, "label": label, **asdict(difference)}
            row |= {
                "seeds": seeds,
                "p_holm": p_holm,
                "verdict": verdict(difference, p_holm, len(compared), quantity.larger_is_better),
                "enough_seeds": enough_seeds(difference.seeds, len(compared)),
            }
            found.append(row)
    return found


def _shares(plan: Plan, values: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Of each method, the share of the ceiling's lead in mean reward over the baseline."""
    if plan.ceiling is None:
        return []
    found = []
    for method in plan.methods:
        if method.label in (plan.baseline, plan.ceiling):
            continue
        runs = [values[label] for label in (plan.baseline, method.label, plan.ceiling)]
        seeds = [seed for seed in plan.seeds if all("mean_reward" in of.get(seed, {}) for of in runs)]
        if not seeds:
            continue
        before, own, best = (np.array([of[seed]["mean_reward"] for seed in seeds]) for of in runs)
        share = share_of(own - before, best - before, LEVEL)
        found.append(
            {"label": method.label, "seeds": seeds}
            | dict(zip(("share", "low", "high"), share or (None,) * 3, strict=True))
        )
    return found


def _collapse(method: Method, runs: Collection[Mapping[str, Any]]) -> str | None:
    """A note that a method was uniform in effect on the mean of its runs, else `None`."""
    metrics = {}
    for name in ("effective_fraction", "contrast_fraction"):
        values = [value for run in runs for value in run["history"].get(f"credit/{name}") or [] if value is not None]
        metrics[f"credit/{name}"] = float(np.mean(values)) if values else math.nan
    try:
        uniform = build_credit(method.credit).is_uniform(metrics)
    except (ValueError, TypeError):  # the user's own class may no longer exist
        return None
    if not uniform:
        return None
    return (
        f"{method.label} was uniform in effect (mean effective token fraction {metrics['credit/effective_fraction']:.5f}), "
        "so what differs is noise."
    )


def _unlogged(metrics: Collection[str], runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """A note for each metric that no run logged."""
    logged = sorted({name for of_method in runs.values() for run in of_method.values() for name in run["history"]})
    return [f"No run logged {name!r}. {nearest(name, logged)}" for name in metrics if name not in logged]


def _notes(methods: list[dict[str, Any]], jobs: list[int], versions: list[dict[str, str]]) -> list[str]:
    notes = [
        f"{method['label']}: no finished run of seed{'s' if len(method['missing']) > 1 else ''} "
        f"{', '.join(map(str, method['missing']))}; its statistics are those of the others."
        for method in methods
        if method["missing"]
    ]
    if jobs != [1]:
        notes.append(
            f"Runs were made {' or '.join(map(str, jobs))} at a time on one machine, so seconds are those of shared cores."
        )
    changed = sorted({name for other in versions for name in other if other.get(name) != versions[0].get(name)})
    if changed:
        notes.append(f"Not all runs have the same versions of {', '.join(changed)}.")
    return notes


# Words for the numbers


def shown_value(quantity: Quantity, found: Mapping[str, Any] | None) -> str:
    """A method's quantity with its interval, or the number of runs that reached the target."""
    if not found:
        return "\u2013"
    if quantity.ranks and found["reached"] < found["runs"]:
        median = "" if found["median"] is None else f"median {quantity.text(found['median'])}, "
        return f"{median}reached in {found['reached']} of {found['runs']}"
    if found["low"] is None:
        return quantity.text(found["mean"])
    return f"{quantity.text(found['mean'])} ({quantity.text(found['low'])} to {quantity.text(found['high'])})"


def shown_difference(quantity: Quantity, row: Mapping[str, Any]) -> str:
    """Method minus baseline with its interval, or the number of seeds in which it was earlier or later."""
    if row["mean"] is None:
        return f"earlier in {row['lower']}, later in {row['higher']} of {len(row['seeds'])} seeds"
    if row["low"] is None:
        return quantity.signed(row["mean"])
    return f"{quantity.signed(row['mean'])} ({quantity.signed(row['low'])} to {quantity.signed(row['high'])})"


def shown_p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def rows_of(comparison: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table as text, by quantity: each method's value, difference from the baseline, Holm's p and verdict."""
    rows = []
    for quantity in quantities(comparison.get("at_target", ())):
        for method in comparison["methods"]:
            if quantity.name not in method["quantities"]:
                continue
            found = difference_of(comparison, quantity.name, method["label"])
            baseline = method["label"] == comparison["baseline"]
            rows.append(
                {
                    "quantity": quantity.title,
                    "method": method["label"],
                    "value": shown_value(quantity, method["quantities"][quantity.name]),
                    "difference": "baseline" if baseline else shown_difference(quantity, found) if found else "\u2013",
                    "p": shown_p(found["p_holm"]) if found and found["enough_seeds"] else "",
                    "verdict": found["verdict"] if found else "",
                }
            )
    return rows


def difference_of(comparison: Mapping[str, Any], quantity: str, label: str) -> dict[str, Any] | None:
    return next(
        (row for row in comparison["differences"] if row["quantity"] == quantity and row["label"] == label), None
    )


def sentence(comparison: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Describes one difference in a sentence."""
    (quantity,) = [q for q in quantities(comparison.get("at_target", ())) if q.name == row["quantity"]]
    count = len(row["seeds"])
    start = f"{quantity.title}, {row['label']} \u2212 {comparison['baseline']}: "
    if row["low"] is None:
        start += shown_difference(quantity, row)
    else:
        low, high = (quantity.signed(row[key]).lstrip("+") for key in ("low", "high"))
        start += f"{quantity.signed(row['mean'])} ({100 * comparison['level']:g} % interval {low} to {high})"
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    if not row["enough_seeds"]:
        return f"{start}: {seeds} {'are' if count > 1 else 'is'} too few to say anything."
    power = (
        "" if row["half_width"] is None else f"; {seeds} could show differences from {quantity.text(row['half_width'])}"
    )
    return f"{start}: {row['verdict']}{power}."


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """One sentence per method on the mean reward, and what it has of the ceiling's lead."""
    found = [sentence(comparison, row) for row in comparison["differences"] if row["quantity"] == "mean_reward"]
    return [*found, *filter(None, [_sentence_of_shares(comparison)])]


def _sentence_of_shares(comparison: Mapping[str, Any]) -> str:
    shares = comparison.get("shares", ())
    if not shares:
        return ""
    lead = f"{comparison['ceiling']}'s lead over {comparison['baseline']} in mean reward"
    known, unknown = ([row for row in shares if (row["share"] is None) == missing] for missing in (False, True))
    if not known:
        few = max(len(row["seeds"]) for row in shares) < 2
        return (
            f"{lead} {'needs two seeds for an interval' if few else 'is not beyond noise'}, so there is none to share."
        )
    parts = [
        f"{row['label']} {_percent(row['share'])} ({_percent(row['low'])} to {_percent(row['high'])})" for row in known
    ]
    without = f"; unknown for {', '.join(row['label'] for row in unknown)}" if unknown else ""
    return f"Share of {lead} ({100 * comparison['level']:g} % interval): {', '.join(parts)}{without}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "\u2212")


_HEADINGS = {
    "quantity": "",
    "method": "method",
    "value": "mean ({level} interval)",
    "difference": "difference from {baseline} ({level} interval)",
    "p": "p (Holm)",
    "verdict": "verdict",
}


def headings(comparison: Mapping[str, Any]) -> dict[str, str]:
    words = {"level": f"{100 * comparison['level']:g} %", "baseline": comparison["baseline"]}
    return {key: text.format(**words) for key, text in _HEADINGS.items()}


def markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(safe(cell).replace("|", "\\|") for cell in cells) + " |"


def to_markdown(comparison: Mapping[str, Any]) -> str:
    """The table, the sentences, and what is needed to read them."""

    titles = headings(comparison)
    rows, last = [], None
    for row in rows_of(comparison):
        cells = list(row.values())
        if row["verdict"] in ("better", "worse", "higher", "lower"):
            cells[-1] = f"**{row['verdict']}**"
        rows.append(markdown_row(["" if row["quantity"] == last else row["quantity"], *cells[1:]]))
        last = row["quantity"]
    lines = [markdown_row(titles.values()), markdown_row(["---"] * len(titles)), *rows, ""]
    lines += [f"- {safe(text)}" for text in [*sentences(comparison), *comparison["notes"]]]
    lines += ["", basis(comparison), ""]
    return "\n".join(lines)


def basis(comparison: Mapping[str, Any]) -> str:
    """Describes the runs behind the numbers."""
    seeds = len(comparison["seeds"])
    target = ""
    if comparison["target_reward"] is not None:
        window = comparison["window"]
        smooth = f"the mean of the last {window} updates' rewards" if window > 1 else "an update's reward"
        target = f" The target is reached when {smooth} is at {comparison['target_reward']:g}."
    if comparison.get("at_target"):
        target += (
            " A metric at the target is the mean of the same updates, over the seeds in which both methods reach it."
        )
    accuracy = f" Final accuracy is avg@{comparison['n']} on held-out problems." if comparison["n"] else ""
    return (
        f"{comparison['updates']} updates, {seeds} seed{'s' if seeds > 1 else ''}, paired: a seed gives every method the "
        "same problems and the same start. Intervals are Student's over seeds; p is that of the exact sign-flip test, "
        f"corrected over methods (Holm).{target}{accuracy}"
    )
