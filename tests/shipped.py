"""The tables of docs/choosing.md, from the results that are shipped with it."""

import json
from pathlib import Path

from helpers import ROOT


RESULTS = ROOT / "docs" / "results"
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
