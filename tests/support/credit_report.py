"""Credit records, ordinary and awkward."""

import math
from dataclasses import replace

import numpy as np
from support.evaluation_runs import HOSTILE

from trl_credit.records.record import CompletionCredit


TOKENS = ["To", " add", " 83", " and", " ", "4", "8", "\n", "\n\n", "\t", "<script>alert(1)</script>", " x", "<0xE4>",
          "語", " 🙂", "שלום", " \\boxed{", "145", "}", "<|im_end|>"]  # fmt: skip

ADVICE = "lower `temperature` to about 0.002, or use `temperature: adaptive`"


def make_record(tokens=TOKENS, seed=0, masked=(), advantage=1.25, **changes):
    draw = np.random.default_rng(seed)
    count = len(tokens)
    mask = np.ones(count, bool)
    mask[list(masked)] = False

    def spread(scale):
        scores = np.where(mask, np.exp(scale * draw.normal(size=count)), 0)
        return (scores * mask.sum() / max(scores.sum(), 1e-9)).astype(np.float32)

    weights = {"uniform": mask.astype(np.float32), "gcpo": spread(1.3), "dgpo": spread(0.02)}
    logps = -draw.exponential(size=count).astype(np.float32)
    record = CompletionCredit(
        prompt="What is 83 + 48?\n<|im_start|>",
        completion="".join(tokens),
        tokens=list(tokens),
        token_ids=np.arange(count) + 70_000,
        mask=mask,
        logps=logps,
        entropy=draw.exponential(size=count).astype(np.float32),
        signals={
            "negative-prompt log-prob": logps - 0.5,
            "squared Hellinger distance": 1e-7 * draw.random(count).astype(np.float32),
        },
        weights=weights,
        token_advantages={name: values * np.float32(advantage) for name, values in weights.items()},
        advantage=advantage,
        reward=1.0,
        info={"answer": "145"},
    )
    return replace(record, **changes)


def awkward_records():
    """Empty, all masked, NaN, without weights, one token, hostile."""
    nothing = make_record([])
    masked = make_record(masked=range(len(TOKENS)), advantage=None, token_advantages={}, reward=None)
    broken = make_record(seed=1)
    broken = replace(
        broken,
        weights=broken.weights | {"gcpo": np.where(np.arange(len(TOKENS)) == 3, np.nan, broken.weights["gcpo"])},
        logps=np.full(len(TOKENS), np.nan, np.float32),
    )
    additive = make_record(seed=2, weights={}, token_advantages={"additive": np.ones(len(TOKENS), np.float32)})
    hostile = make_record([HOSTILE, "", "\r", "\u0301"], prompt=HOSTILE, info={HOSTILE: [HOSTILE, math.nan]})
    return [nothing, masked, broken, additive, make_record(["x"]), hostile, make_record(advantage=0.0, reward=math.nan)]


def about(**more):
    return {"model": "m", "title": "Credit of m", "step": 40, "methods": {"gcpo": {"temperature": 1.0}},
            "advice": {"dgpo": ADVICE, "uniform": "never shown"}} | more  # fmt: skip


def value(text):
    return math.nan if text == "–" else float(text.replace("−", "-").replace(",", ""))  # noqa: RUF001
