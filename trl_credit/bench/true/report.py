"""Tables and sentences of credit against the truth, in the format of `bench_true.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..._util.text import safe, safe_lines, safe_text, without_folders
from ..report import Table, markdown_table, print_table, wide_console
from .gradients import TRUE


_SCORES = {
    "correlation": "correlation",
    "within": "within completions",
    "top_mass": "top mass",
    "wrong_sign": "wrong sign",
    "no_credit": "no credit",
}
LEGEND = (
    "± is the error over prompts, [ ] a 95 % interval; p is of the difference from uniform, after Holm. Worth: "
    "how many times as many completions uniform credit needs for the method's cosine. Baselines are dim in a terminal."
)


# With fewer effective prompts than this, a cosine's interval is too narrow: it held 71 % of the time in simulations with 19
FEW_EFFECTIVE = 25
# Being worth fewer times as many completions than this is no gain that anybody would notice
HARDLY = 1.2
# Larger numbers of completions are not told: they are noise
MOST_TOLD = 1000


def _with_error(entry: Mapping[str, Any], digits: int = 3) -> str:
    if entry["mean"] is None:
        return "-"
    return f"{entry['mean']:.{digits}f}" + ("" if entry["stderr"] is None else f" ± {entry['stderr']:.{digits}f}")


def worth(share: Mapping[str, Any]) -> str | None:
    """How many times as many completions with uniform credit a method is worth, with the interval: "1.8 [1.2, 4.1]". `∞`
    where uniform credit does not get there; `None` if it is unknown."""
    if share["mean"] is None:
        return None

    def times(share: float) -> str:
        if share <= 0 or share < 1 / MOST_TOLD:
            return "∞" if share <= 0 else f"> {MOST_TOLD}"
        value = 1 / share
        return "< 0.1" if value < 0.095 else f"{value:.2g}" if value < 10 else f"{value:.0f}"

    told = times(share["mean"])
    # The fewer of its completions a method needs, the more it is worth
    return told if share["low"] is None else f"{told} [{times(share['high'])}, {times(share['low'])}]"


def _p(entry: Mapping[str, Any]) -> str:
    p = entry.get("p_holm")
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def tables(results: Mapping[str, Any]) -> list[Table]:
    samples, truth = results["samples"], results["truth"]
    sources = samples["sources"]
    found: list[Table] = [
        (
            "Samples",
            ["what", "number"],
            [
                ["prompts", str(samples["prompts"])],
                ["groups", str(samples["groups"])],
                ["... with unequal rewards", str(samples["mixed_groups"])],
                ["completions", str(samples["completions"])],
                ["mean tokens", f"{samples['mean_tokens']:.1f}"],
                ["mean reward", f"{samples['mean_reward']:.3f}"],
                ["mean reward above V(prompt)", _with_error(samples["reward_above_value"])],
                ["valued prefixes", str(samples["prefixes"])],
                ["... estimated (different ones)", f"{sources['sampled']} ({samples['estimates']})"],
                ["... as a neighbour's, which is certain", str(sources["certain"])],
                ["... known: the reward, a mistake", f"{sources['reward']}, {sources['mistake']}"],
                ["continuations", str(samples["continuations"])],
                [
                    "mean standard error of an estimated value",
                    _with_error({"mean": samples["mean_stderr"], "stderr": None}),
                ],
                ["reliability of the true advantages", _with_error(truth["reliability"])],
                ["... within completions", _with_error(truth["within_reliability"])],
                ["top mass of the true advantages themselves", _with_error(truth["best"])],
            ],
        ),
        (
            "Token advantages against the true ones",
            ["method", *(heading for name in _SCORES for heading in _headings(name))],
            [
                [label, *(cell for name in _SCORES for cell in _cells(row[name], name))]
                for label, row in results["scores"].items()
            ],
        ),
    ]
    if "gradients" in results:
        gradients = results["gradients"]
        found.append(
            (
                f"Policy gradient against the true one, batches of {gradients['batch']} groups ({gradients['completions']} "
                "completions)",
                ["method", "cosine", "p", "worth, in completions", "cosine, in the limit"],
                [
                    [
                        label,
                        _with_error(row["cosine"]),
                        _p(row["cosine"]),
                        (row["cosine"]["mean"] is not None and worth(row["share"])) or "-",
                        _with_error(row["limit"]),
                    ]
                    for label, row in gradients["methods"].items()
                ],
            )
        )
    return found


_WITH_P = ("within", "top_mass")


def _headings(name: str) -> list[str]:
    return [_SCORES[name], "p"] if name in _WITH_P else [_SCORES[name]]


def _cells(entry: Mapping[str, Any], name: str) -> list[str]:
    return [_with_error(entry), _p(entry)] if name in _WITH_P else [_with_error(entry)]


def few_prompts(gradients: Mapping[str, Any]) -> str | None:
    """A warning if the true gradient is mostly that of a few prompts."""
    effective = gradients["effective_prompts"]
    if effective is None or effective >= FEW_EFFECTIVE:
        return None
    return (
        f"The true gradient is mostly that of {effective:.0f} of {gradients['prompts']} prompts, so the cosines may be off "
        "by more than their intervals say. Differences from uniform hold better, down to about 8 such prompts. More "
        "prompts help (`num_prompts`)."
    )


def hardly(share: Mapping[str, Any]) -> bool:
    """True if a method is worth hardly more completions than uniform credit ([`worth`]) even at its interval's upper end."""
    return share["low"] is not None and share["low"] * HARDLY > 1


def sentences_of(results: Mapping[str, Any]) -> list[str]:
    """What the results say."""
    samples, reliability = results["samples"], results["truth"]["reliability"]["mean"]
    sentences = []
    if equal := samples["groups"] - samples["mixed_groups"]:
        sentences.append(
            f"{equal} of {samples['groups']} groups have equal rewards: GRPO learns nothing from them, with any of these "
            "methods."
        )
    if reliability is None or reliability <= 0.5:
        sentences.append(
            "More than half of the estimated true advantages' variance is error. The scores are corrected for it, but "
            "uncertain: lower `stderr` and raise `most`."
        )
    if "gradients" not in results:
        return sentences
    gradients = results["gradients"]
    rows = gradients["methods"]
    true, uniform = rows[TRUE]["cosine"], rows["uniform"]["cosine"]
    gap, share = true["difference"], rows[TRUE]["share"]
    if gap["low"] is None:
        sentences.append("Headroom: unknown, as too few prompts have unequal rewards.")
    else:
        times = worth(share)
        sentences.append(
            f"Headroom: with the true advantages, the gradient of a batch of {gradients['batch']} groups "
            f"({gradients['completions']} completions) has a cosine of {_told(true)} with the true gradient of the same "
            f"prompts; with uniform credit {_told(uniform)}. The difference is {_told(gap)}"
            + (f", worth {times} times as many completions with uniform credit" if times else "")
            + ("." if gap["low"] > 0 else ", which is hardly any." if hardly(share) else ", which is within noise.")
        )
    if concentrated := few_prompts(gradients):
        sentences.append(concentrated)
    tested = {label: row["cosine"] for label, row in rows.items() if row["cosine"].get("p_holm") is not None}
    better = [k for k, row in tested.items() if row["p_holm"] < 0.05 and row["difference"]["mean"] > 0]
    worse = [k for k, row in tested.items() if row["p_holm"] < 0.05 and row["difference"]["mean"] < 0]
    for words, found in (("a larger", better), ("a smaller", worse)):
        listed = ", ".join(f"{k} ({_told(tested[k])})" for k in found) or "none"
        sentences.append(f"Methods with {words} cosine than uniform (p < 0.05 after Holm): {listed}.")
    return sentences


def _told(entry: Mapping[str, Any]) -> str:
    """A value with its interval."""
    mean, low, high = ("-" if entry[k] is None else f"{entry[k]:.3f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def show(results: Mapping[str, Any]) -> None:
    """Prints the tables and sentences."""
    console = wide_console()
    for table in tables(results):
        print_table(console, table, results["baselines"])
    console.print(LEGEND, style="dim", markup=False)
    for sentence in results["sentences"]:
        console.print(safe_text(safe(sentence)))
    for note in results["notes"]:
        console.print(safe_text(safe(f"Note: {note}")))


def write_markdown(results: Mapping[str, Any], path: Path) -> None:
    settings = results["settings"]
    lines = [
        "# Credit against true advantages",
        "",
        f"Model `{safe(without_folders(settings['model']))}`, data `{safe(without_folders(settings['dataset_name']))}`, "
        f"seed {settings['seed']}.",
        "Baselines: " + safe(", ".join(results["baselines"])) + ".",
        LEGEND.removesuffix(" Baselines are dim in a terminal."),
        "",
        "## What it says",
        "",
        *(f"- {safe(sentence)}" for sentence in results["sentences"]),
        *(f"- Note: {safe(note)}" for note in results["notes"]),
        "",
    ]
    for table in tables(results):
        lines += markdown_table(table)
    path.write_text(safe_lines("\n".join(lines)).rstrip() + "\n", encoding="utf-8")
