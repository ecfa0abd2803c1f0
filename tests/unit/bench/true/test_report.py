"""What is said of the results of `bench --true`."""

import pytest
from support.bench import changed

from trl_credit.bench.true.report import sentences_of, tables, worth


def entry(mean, reach=0.1, **more):
    return {"mean": mean, "stderr": reach / 2, "low": mean - reach, "high": mean + reach} | more


UNKNOWN = {"mean": None, "stderr": None, "low": None, "high": None}


def row(cosine, difference=None, p=None, share=0.5):
    own = entry(cosine)
    if difference is not None:
        own["difference"] = entry(difference, 0.05)
    if p is not None:
        own["p_holm"] = p
    return {"cosine": own, "limit": entry(0.9), "share": entry(share, 0.3)}


SCORES = ("correlation", "within", "top_mass", "wrong_sign", "no_credit")
RESULTS = {
    "samples": {
        "prompts": 4,
        "groups": 8,
        "mixed_groups": 5,
        "completions": 32,
        "mean_tokens": 9.5,
        "mean_reward": 0.25,
        "reward_above_value": entry(0.01),
        "prefixes": 99,
        "sources": {"sampled": 1, "certain": 2, "reward": 3, "mistake": 4},
        "estimates": 5,
        "continuations": 6,
        "mean_stderr": None,
    },
    "truth": {name: entry(0.8) for name in ("reliability", "within_reliability", "best")},
    "baselines": ["uniform"],
    "scores": {"uniform": {name: entry(0.0) for name in SCORES}},
    "gradients": {
        "batch": 8,
        "completions": 64,
        "prompts": 64,
        "effective_prompts": 40.0,
        "methods": {
            "true": row(0.7, 0.06),
            "uniform": row(0.6, share=1.0),
            "good": row(0.9, 0.3, 0.01, share=0.1),
            "bad": row(0.4, -0.2, 0.02, share=3.0),
            "noisy": row(0.8, 0.2, 0.2),
        },
    },
}


@pytest.mark.parametrize(
    ("share", "low", "high", "told"),
    [
        (0.5, 0.25, 0.8, "2 [1.2, 4]"),
        (0.1, -0.1, 0.2, "10 [5, ∞]"),
        (-0.1, -0.2, 0.4, "∞ [2.5, ∞]"),
        (4.0, 2.0, 50.0, "0.25 [< 0.1, 0.5]"),
        (1e-9, 1e-9, 1e-9, "> 1000 [> 1000, > 1000]"),
        (0.5, None, None, "2"),
        (None, None, None, None),
    ],
)
def test_worth(share, low, high, told):
    assert worth({"mean": share, "low": low, "high": high}) == told


def test_what_is_said():
    equal, headroom, better, worse = sentences_of(RESULTS)
    assert equal.startswith("3 of 8 groups have equal rewards")
    assert "batch of 8 groups (64 completions) has a cosine of 0.700 [0.600, 0.800]" in headroom
    assert "with uniform credit 0.600 [0.500, 0.700]" in headroom
    assert "The difference is 0.060 [0.010, 0.110], worth 2 [1.2, 5] times as many completions" in headroom
    assert headroom.endswith("uniform credit.")
    assert better == "Methods with a larger cosine than uniform (p < 0.05 after Holm): good (0.900 [0.800, 1.000])."
    assert worse == "Methods with a smaller cosine than uniform (p < 0.05 after Holm): bad (0.400 [0.300, 0.500])."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradients__methods__true": row(0.62, 0.02)}, "with uniform credit, which is within noise."),
        (
            {"gradients__methods__true": row(0.62, 0.02) | {"share": {"mean": 0.95, "low": 0.9, "high": 1.02}}},
            "with uniform credit, which is hardly any.",
        ),
        (
            {"gradients__methods__true__cosine__difference": UNKNOWN},
            "Headroom: unknown, as too few prompts have unequal",
        ),
        ({"truth__reliability": entry(0.4)}, "More than half of the estimated true advantages' variance is error"),
        ({"truth__reliability": UNKNOWN}, "More than half of the estimated true advantages' variance is error"),
        ({"gradients__effective_prompts": 3.0}, "The true gradient is mostly that of 3 of 64 prompts"),
        ({"gradients__methods__good__cosine__p_holm": None}, "larger cosine than uniform (p < 0.05 after Holm): none."),
    ],
)
def test_what_is_said_of_other_results(changes, said):
    assert said in " ".join(sentences_of(changed(RESULTS, **changes)))
    assert said not in " ".join(sentences_of(RESULTS))


def test_without_gradients():
    results = {name: value for name, value in RESULTS.items() if name != "gradients"}
    assert len(sentences_of(results)) == 1
    assert [title for title, *_ in tables(results)] == ["Samples", "Token advantages against the true ones"]


def test_tables():
    (_, _, samples), (_, headings, scores), (title, columns, gradients) = tables(RESULTS)
    assert ["... with unequal rewards", "5"] in samples
    assert ["mean standard error of an estimated value", "-"] in samples
    assert len(headings) == len(scores[0])
    assert "batches of 8 groups (64 completions)" in title
    assert columns == ["method", "cosine", "p", "worth, in completions", "cosine, in the limit"]
    assert gradients[2] == ["good", "0.900 ± 0.050", "0.010", "10 [2.5, ∞]", "0.900 ± 0.050"]
