"""The tables of docs/choosing.md, from the results that are shipped with it."""

import json
from pathlib import Path

from helpers import ROOT

from trl_credit.bench.true.report import worth


RESULTS = ROOT / "docs" / "results"
# Regimes measured against true advantages, and those trained with every method at its own learning rate
TRUE_REGIMES = ("letters", "plain")
TUNED_REGIMES = ("letters", "plain", "small", "long")
LANGUAGE_MODEL = "smollm2"  # also with tuned methods
TRUE = "true"
# How labels are shown, of those that differ
SHOWN = {
    TRUE: "true advantages",
    "oracle": "oracle: true, least variance",
    "mean_share share=0.0": "no baseline",
    "mean_share share=0.5": "half the mean",
    "whole_completion": "least variance, whole completion",
    "odds others=False": "odds",
    "odds others=True": "odds, mean of the others",
}
# The baselines of docs/certainty.md
TRIED = (
    *("uniform", "mean_share share=0.5", "mean_share share=0.0", "whole_completion", "otb", "odds others=False"),
    *("odds others=True", "certainty", TRUE, "oracle", "gcpo", "gcpo + otb", "gcpo + certainty"),
)
_ELSEWHERE = {label for label in TRIED if label.startswith(("mean_share share=0.0", "whole", "odds"))}
REGIMES = ("plain", "letters", "long", "drift")
# A second look at what the first ten seeds of a regime showed
AGAIN = "long_again"
COLUMNS = ("gcpo", "dgpo", "dgpo adaptive", "surprisal", "entropy")
# Recipes of the embedded image model, and what is special about each
IMAGE_REGIMES = {
    "digits_all_steps": "all steps trained",
    "digits": "last step out",
    "digits_reuse": "last step out, batches used twice",
}
# Every method and control of CreditBench, before training; after it, those that learn from what it changes
BENCH_ROWS = (
    ("gcpo", 0),
    ("gcpo", 80),
    ("dgpo", 80),
    ("rlsd", 0),
    ("rlsd", 80),
    ("rlcsd", 0),
    ("rlcsd", 80),
    ("teacher", 0),
    ("otb", 0),
    ("otb", 80),
    ("certainty", 0),
    ("certainty", 80),
    ("delta", 0),
    ("delta", 80),
    ("forking", 0),
    ("uniform", 0),
    ("random", 0),
    ("shuffled gcpo", 0),
    ("position late", 0),
    ("position early", 0),
    ("surprisal", 0),
    ("surprisal", 80),
    ("entropy", 0),
)


def signed(value: float) -> str:
    text = f"{abs(value):.3f}"
    return text if not float(text) else ("+" if value > 0 else "\u2212") + text


def true_results(regime: str, results: Path = RESULTS) -> dict:
    return json.loads((results / f"true_{regime}" / "bench_true.json").read_text())


def tuned_results(regime: str, results: Path = RESULTS) -> dict:
    return json.loads((results / f"headroom_{regime}" / "comparison.json").read_text())


def headroom_rows(results: Path = RESULTS) -> list[str]:
    """What true advantages are worth."""
    rows = [
        "| regime | tokens | mean reward | cosine, uniform | cosine, true advantages | worth, in completions |",
        "|---" * 6 + "|",
    ]
    for regime in TRUE_REGIMES:
        found = true_results(regime, results)
        own, true = (found["gradients"]["methods"][label] for label in ("uniform", TRUE))
        samples = found["samples"]
        rows.append(
            f"| {regime} | {samples['mean_tokens']:.0f} | {samples['mean_reward']:.2f} | {own['cosine']['mean']:.2f} "
            f"| {true['cosine']['mean']:.2f} | {worth(true['share'])} |"
        )
    return rows


def worth_rows(results: Path = RESULTS) -> list[str]:
    """What each method is worth; bold where its cosine is another than uniform's beyond noise."""
    known = {regime: true_results(regime, results) for regime in TRUE_REGIMES}
    idle = {label for results_ in known.values() for label in results_["uniform_in_effect"]}
    found = {regime: results_["gradients"]["methods"] for regime, results_ in known.items()}
    labels = list(dict.fromkeys(label for methods in found.values() for label in methods))
    rows = [f"| worth, in completions | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for label in labels:
        cells = []
        for methods in found.values():
            row = methods.get(label)
            text = "\u2013" if row is None else worth(row["share"]) + " (not tested)" * (label == TRUE)
            sure = row is not None and row["cosine"].get("p_holm", 1) < 0.05
            cells.append(f"**{text}**" if sure else text)
        if label != "uniform" and label not in idle | _ELSEWHERE:
            rows.append(f"| {SHOWN.get(label, label)} | {' | '.join(cells)} |")
    return rows


def tried_rows(results: Path = RESULTS) -> list[str]:
    """The baselines that were tried: cosines and what they are worth."""
    found = {regime: true_results(regime, results)["gradients"]["methods"] for regime in TRUE_REGIMES}
    titles = " | ".join(f"{regime}: cosine | worth, in completions" for regime in found)
    rows = [f"| baseline | {titles} |", "|---" * (2 * len(found) + 1) + "|"]
    for label in TRIED:
        cells = [
            f"{methods[label]['cosine']['mean']:.2f} | {worth(methods[label]['share'])}" for methods in found.values()
        ]
        rows.append(f"| {SHOWN.get(label, label)} | {' | '.join(cells)} |")
    return rows


def _tuned(results: Path) -> tuple[dict[str, dict], list[str]]:
    """The comparisons with tuned methods by regime, and all labels, the ceiling after the baseline."""
    found = {regime: tuned_results(regime, results) for regime in (*TUNED_REGIMES, LANGUAGE_MODEL)}
    labels = dict.fromkeys(method["label"] for comparison in found.values() for method in comparison["methods"])
    first = [next(iter(found.values()))[name] for name in ("baseline", "ceiling")]
    return found, [*first, *(label for label in labels if label not in first)]


def tuned_rows(results: Path = RESULTS) -> list[str]:
    """Mean rewards with every method at its own learning rate: the difference from uniform, bold beyond noise, and the share
    of the oracle's lead."""
    found, labels = _tuned(results)
    rows = [f"| mean reward | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for label in labels:
        cells = [_tuned_cell(comparison, label) for comparison in found.values()]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return rows


def _tuned_cell(comparison: dict, label: str) -> str:
    method = next((method for method in comparison["methods"] if method["label"] == label), None)
    if method is None:
        return "\u2013"
    if label == comparison["baseline"]:
        return f"{method['quantities']['mean_reward']['mean']:.3f}"
    (row,) = [d for d in comparison["differences"] if (d["label"], d["quantity"]) == (label, "mean_reward")]
    text = signed(row["mean"])
    text = text if row["verdict"] == "noise" else f"**{text}**"
    share = next((row for row in comparison["shares"] if row["label"] == label and row["share"] is not None), None)
    if share is None:
        return text
    shown = [f"{100 * share[key]:.0f}".replace("-", "\u2212") for key in ("share", "low", "high")]
    return "{}: {} % ({} to {})".format(text, *shown)


def target_rows(results: Path = RESULTS) -> list[str]:
    """Updates to the target reward, and the mean reward of the last quarter of the updates. Bold: different from uniform's
    beyond noise."""
    found, labels = _tuned(results)
    titles = [
        f"{regime}: updates to {comparison['target_reward']:g} | last quarter" for regime, comparison in found.items()
    ]
    rows = [f"| method | {' | '.join(titles)} |", "|---" * (2 * len(found) + 1) + "|"]
    for label in labels:
        cells = [
            _quantity(comparison, label, quantity, digits)
            for comparison in found.values()
            for quantity, digits in (("updates_to_target", 0), ("last_reward", 3))
        ]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return rows


def _quantity(comparison: dict, label: str, quantity: str, digits: int) -> str:
    method = next((method for method in comparison["methods"] if method["label"] == label), None)
    if method is None:
        return "\u2013"
    value = method["quantities"][quantity]
    text = f"{value['mean']:.{digits}f}" if value["mean"] is not None else f"{value['median']:.{digits}f}*"
    rows = [row for row in comparison["differences"] if (row["label"], row["quantity"]) == (label, quantity)]
    return f"**{text}**" if any(row["verdict"] != "noise" for row in rows) else text


def learning_rows(results: Path = RESULTS) -> list[str]:
    rows = [f"| regime | uniform | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for regime in (*REGIMES, AGAIN):
        comparison = json.loads((results / regime / "comparison.json").read_text())
        (uniform,) = [m for m in comparison["methods"] if m["label"] == "uniform"]
        found = {d["label"]: d for d in comparison["differences"] if d["quantity"] == "mean_reward"}
        cells = [f"{signed(found[c]['mean'])}, {found[c]['verdict']}" if c in found else "\u2013" for c in COLUMNS]
        name = "long, ten other seeds" if regime == AGAIN else regime
        rows.append(f"| {name} | {uniform['quantities']['mean_reward']['mean']:.3f} | {' | '.join(cells)} |")
    return rows


def image_rows(results: Path = RESULTS) -> list[str]:
    rows = [
        "| trained | method | mean reward | difference, p | updates to 0.9 | Frechet distance there |",
        "|---" * 6 + "|",
    ]
    for regime, title in IMAGE_REGIMES.items():
        comparison = json.loads((results / regime / "comparison.json").read_text())
        found = {d["label"]: d for d in comparison["differences"] if d["quantity"] == "mean_reward"}
        for place, method in enumerate(comparison["methods"]):
            label, values = method["label"], method["quantities"]
            updates = values["updates_to_target"]
            shown = f"{updates['mean']:.1f}" if updates["mean"] is not None else f"{updates['median']:.1f}*"
            difference = "\u2013"
            if label in found:
                row = found[label]
                difference = f"{signed(row['mean'])}, {row['p_holm']:.3f}: {row['verdict']}"
            rows.append(
                f"| {title if not place else ''} | {label} | {values['mean_reward']['mean']:.3f} | {difference} | {shown} "
                f"| {values['at_target/frechet_distance']['mean']:.1f} |"
            )
    return rows


def bench_rows(results: Path = RESULTS) -> list[str]:
    bench = json.loads((results / "bench" / "bench.json").read_text())
    variants = list(bench["scores"]["gcpo"])
    rows = [f"| AUROC | updates | {' | '.join(variants)} |", "|---" * (len(variants) + 2) + "|"]
    for label, updates in BENCH_ROWS:
        scores = bench["drift"][str(updates)]["scores"][label]
        rows.append(
            f"| {label} | {updates} | {' | '.join(format(scores[v]['auroc']['mean'], '.3f') for v in variants)} |"
        )
    return rows
