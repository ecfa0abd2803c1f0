"""What the true advantages say to somebody who has to choose a credit method: a recommendation, or why there is none."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .gradients import TRUE
from .report import few_prompts, hardly, worth


ALPHA = 0.05
# Fewer prompts than this carry no recommendation
FEWEST_PROMPTS = 16
# The same of prompts that the true gradient effectively is of: below, tests of equal methods reject too often
FEWEST_EFFECTIVE = 5
LEAST_RELIABILITY = 0.3
# Share of groups with unequal rewards below which most of a batch is wasted
FEW_MIXED = 0.3


@dataclass
class Advice:
    """A recommendation.

    Args:
        method: Label of the method; `uniform` if credit has nothing to add; `None` if the data carry no recommendation.
        headline: The recommendation in a sentence.
        reasons: What it rests on.
        cautions: What speaks against it, or is not known.
        next: What to do next.
    """

    method: str | None
    headline: str
    reasons: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def advise(results: Mapping[str, Any], samples_in: str | None = None) -> Advice:
    """Makes a recommendation from the contents of bench_true.json.

    Args:
        results: The contents.
        samples_in: The folder of the samples, on which other methods can be scored.
    """
    samples, truth = results["samples"], results["truth"]
    mixed, prompts = samples["mixed_groups"], samples["prompts"]
    reasons = [
        f"{mixed} of {samples['groups']} groups have unequal rewards (mean reward {samples['mean_reward']:.2f}, "
        f"{samples['mean_tokens']:.0f} tokens a completion)."
    ]
    if not mixed:
        return Advice(
            None,
            "No recommendation: every group has equal rewards, so GRPO learns nothing here with any credit.",
            reasons,
            next=["Choose prompts that the model sometimes solves, or a finer reward."],
        )
    reliability = truth["reliability"]["mean"]
    lacking = []
    if prompts < FEWEST_PROMPTS:
        lacking.append(f"{prompts} prompts are too few (`num_prompts`, from {FEWEST_PROMPTS})")
    if reliability is None or reliability < LEAST_RELIABILITY:
        share = "nearly all" if reliability is None else f"{100 * (1 - reliability):.0f} %"
        lacking.append(f"{share} of the true advantages' variance is sampling error (lower `stderr`, raise `most`)")
    rows = results.get("gradients", {}).get("methods", {})
    effective = results.get("gradients", {}).get("effective_prompts")
    if TRUE not in rows:
        lacking.append("there are no gradients (`gradients: true`)")
    elif effective is not None and effective < FEWEST_EFFECTIVE:
        lacking.append(f"the true gradient is mostly that of {effective:.0f} prompts (raise `num_prompts`)")
    if lacking:
        return Advice(None, f"No recommendation: {'; '.join(lacking)}.", reasons)
    return _from_gradients(results, rows, reasons, samples_in)


def _from_gradients(
    results: Mapping[str, Any], rows: Mapping[str, Mapping], reasons: list[str], samples: str | None
) -> Advice:
    gradients, collapsed = results["gradients"], results.get("uniform_in_effect", {})
    gap, uniform = rows[TRUE]["cosine"]["difference"], rows["uniform"]["cosine"]["mean"]
    perfect = worth(rows[TRUE]["share"])
    cautions = [f"{label} is uniform in effect here: {remedy}" for label, remedy in collapsed.items()]
    if results["samples"]["mixed_groups"] < FEW_MIXED * results["samples"]["groups"]:
        cautions.append(
            "Most groups have equal rewards and teach nothing: `dynamic_sampling: true` is likely to gain more than credit."
        )
    if concentrated := few_prompts(gradients):
        cautions.append(concentrated)
    cautions.append(
        "This is the policy as it is now, and the direction of its updates. Whether it learns faster, only training shows."
    )
    if gap["low"] is None:
        return Advice(None, "No recommendation: the headroom is unknown.", reasons, cautions)
    told = f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
    times = f", worth {perfect} times as many completions with uniform credit" if perfect else ""
    reasons.append(
        f"With true advantages, the gradient of {gradients['completions']} completions has a cosine with the true gradient "
        f"that differs from uniform's ({uniform:.3f}) by {told}{times}. True advantages are no upper bound: a better "
        "baseline may gain more."
    )
    tested = {label: row for label, row in rows.items() if row["cosine"].get("p_holm") is not None}
    candidates = {k: row for k, row in tested.items() if k not in results["baselines"]}
    ranked = sorted(candidates, key=lambda label: -rows[label]["cosine"]["mean"])
    better = [k for k in ranked if _differs(rows[k]) and rows[k]["cosine"]["difference"]["mean"] > 0]
    worse = [k for k, row in candidates.items() if _differs(row) and row["cosine"]["difference"]["mean"] < 0]
    beaten_by = [
        k
        for k in results["baselines"]
        if k in tested and _differs(tested[k]) and tested[k]["cosine"]["difference"]["mean"] > 0
    ]
    if beaten_by:
        cautions.insert(
            0,
            f"Better than uniform, too, without knowing the outcome: {_listed(beaten_by)}. A method has to beat those.",
        )
    if worse:
        cautions.insert(0, f"Worse than uniform beyond noise: {_listed(worse)}.")
    if not candidates:
        head = "No recommendation: no method was scored beside the controls (`methods`)."
        return Advice(None, head, reasons, cautions)
    if not better:
        none = f"none of {_listed([*candidates])} is" if len(candidates) > 1 else f"{_listed([*candidates])} is not"
        none += " better beyond noise"
        reasons.append(f"The largest cosine is that of {_against(ranked[0], rows)}")
        more = [] if samples is None else [_other_methods(samples)]
        if gap["low"] <= 0:
            small = hardly(rows[TRUE]["share"])
            head = (
                f"Train with `uniform`: {none}, and even true advantages would hardly change the updates."
                if small
                else f"No recommendation: {none}, nor are true advantages. Until one is, train with `uniform`."
            )
            if not small:
                more = ["Raise `num_prompts`: the interval shrinks with its root.", *more]
            return Advice("uniform" if small else None, head, reasons, cautions, more)
        return Advice(
            "uniform",
            f"Train with `uniform`: there is headroom, but {none}.",
            reasons,
            cautions,
            ["Look at a page of `trl-credit inspect`: parameters may be off, such as GCPO's `negative_prompt`.", *more],
        )
    best = better[0]
    reasons += [_against(label, rows) for label in better]
    return Advice(
        best,
        f"Try `{best}`: its updates point better than uniform's beyond noise.",
        reasons,
        cautions,
        [
            f"Confirm it: `trl-credit compare RECIPE --methods uniform {_word(best, results)} --tune learning_rate=... "
            "--seeds 10`."
        ],
    )


def _against(label: str, rows: Mapping[str, Mapping]) -> str:
    """A method's difference from uniform, as a sentence."""
    row, own = rows[label]["cosine"], worth(rows[label]["share"])
    times = f", worth {own} times as many completions" if own else ""
    return (
        f"{label}: {row['difference']['mean']:+.3f} [{row['difference']['low']:+.3f}, "
        f"{row['difference']['high']:+.3f}] against uniform, p {_p(row['p_holm'])} after Holm{times}."
    )


def _other_methods(samples: str) -> str:
    folder = shlex.quote(samples)
    return (
        f"Other methods on the same samples: `trl-credit advise --values {folder} --methods ... --output_dir ...`. "
        "One that is found so has to be confirmed with another `seed`."
    )


def _word(label: str, results: Mapping[str, Any]) -> str:
    """A method as a word of the command line: its name, or its mapping if the label is more than that."""
    method = results["methods"][label]
    return label if label == method["method"] else f"'{json.dumps(method)}'"


def _differs(row: Mapping[str, Any]) -> bool:
    return row["cosine"]["p_holm"] < ALPHA


def _listed(labels: list[str]) -> str:
    return ", ".join(labels)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
