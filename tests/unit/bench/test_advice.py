"""Recommendations from true advantages."""

import pytest
from support.bench import changed

from trl_credit.bench.true.advice import advise


def entry(mean, difference=None, half=0.02, p=None):
    found = {"mean": mean, "stderr": half / 2, "low": mean - half, "high": mean + half}
    if difference is not None:
        found["difference"] = {
            "mean": difference,
            "stderr": half / 2,
            "low": difference - half,
            "high": difference + half,
        }
    if p is not None:
        found["p_holm"] = p
    return found


def row(cosine, difference=None, p=None, half=0.02, share=0.5):
    return {
        "cosine": entry(cosine, difference, half, p),
        "share": {"mean": share, "stderr": 0.1, "low": share - 0.3, "high": share + 0.1},
    }


RESULTS = {
    "samples": {"prompts": 32, "groups": 64, "mixed_groups": 48, "mean_reward": 0.4, "mean_tokens": 60.0},
    "truth": {"reliability": entry(0.8)},
    "baselines": ["uniform", "random"],
    "methods": {name: {"method": name} for name in ("uniform", "random", "gcpo", "otb", "dgpo")},
    "gradients": {
        "batch": 8,
        "completions": 64,
        "prompts": 32,
        "effective_prompts": 26.0,
        "methods": {
            "true": row(0.95, 0.13),
            "uniform": row(0.82),
            "random": row(0.78, -0.04, 0.3),
            "gcpo": row(0.88, 0.06, 0.01, share=0.8),
            "otb": row(0.9, 0.08, 0.0004, share=0.25),
            "dgpo": row(0.7, -0.12, 0.001),
        },
    },
}


def test_the_best_method_beyond_noise_is_recommended():
    advice = advise(RESULTS)
    assert advice.method == "otb"
    said = " ".join(advice.reasons)
    assert "48 of 64 groups have unequal rewards" in said
    assert "+0.130 [+0.110, +0.150]" in said
    assert "worth 2 [1.7, 5] times as many completions with uniform credit" in said
    assert said.index("otb: +0.080") < said.index("gcpo: +0.060")
    assert "p < 0.001 after Holm, worth 4 [2.9, ∞] times as many completions." in said
    assert "Worse than uniform beyond noise: dgpo." in advice.cautions
    assert "--methods uniform otb --tune" in advice.next[0]


NOBODY = {"gradients__methods__otb": row(0.9, 0.08, 0.06), "gradients__methods__gcpo": row(0.88, 0.06, 0.2)}


def test_no_headroom_and_no_knowledge_are_told_apart():
    small = row(0.83, 0.01, half=0.02) | {"share": {"mean": 0.93, "stderr": 0.02, "low": 0.88, "high": 1.02}}
    none = advise(changed(RESULTS, gradients__methods__true=small, **NOBODY), "out put")
    assert none.method == "uniform"
    assert none.headline == (
        "Train with `uniform`: none of gcpo, otb, dgpo is better beyond noise, and even true advantages would hardly change "
        "the updates."
    )
    assert "Other methods on the same samples: `trl-credit advise --values 'out put' --methods" in none.next[0]
    unknown = advise(changed(RESULTS, gradients__methods__true=row(0.92, 0.1, half=0.2), **NOBODY))
    assert [text.split(":")[0] for text in unknown.next] == ["Raise `num_prompts`"]
    assert unknown.reasons[-1].startswith(
        "The largest cosine is that of otb: +0.080 [+0.060, +0.100] against uniform, p = 0.06"
    )
    # A cosine near 0 may be close to uniform's and worth several times as many completions
    few = advise(changed(RESULTS, gradients__methods__true=row(0.08, 0.01, half=0.02), **NOBODY))
    assert few.method is None
    assert unknown.method is None
    assert "none of gcpo, otb, dgpo is better beyond noise, nor are true advantages" in unknown.headline
    for advice in (none, unknown):
        assert "Worse than uniform beyond noise: dgpo." in advice.cautions


@pytest.mark.parametrize("headroom", [row(0.83, 0.01, half=0.02), row(0.92, 0.1, half=0.2)])
def test_a_method_may_be_better_than_perfect_credit(headroom):
    """Whose baseline need not have the least variance."""
    assert advise(changed(RESULTS, gradients__methods__true=headroom)).method == "otb"


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        (("gcpo", "otb", "dgpo"), "No recommendation: no method was scored beside the controls"),
        (("otb", "dgpo"), "there is headroom, but gcpo is not better beyond noise"),
    ],
)
def test_few_methods(left_out, said):
    results = changed(RESULTS, **NOBODY)
    results["gradients"]["methods"] = {
        label: row for label, row in results["gradients"]["methods"].items() if label not in left_out
    }
    assert said in advise(results).headline


def test_headroom_that_nobody_captures():
    advice = advise(changed(RESULTS, **NOBODY))
    assert advice.method == "uniform"
    assert "there is headroom, but none of gcpo, otb, dgpo is better beyond noise" in advice.headline


def test_a_control_is_never_recommended():
    advice = advise(changed(RESULTS, gradients__methods__random=row(0.93, 0.11, 0.001)))
    assert advice.method == "otb"
    assert advice.cautions[1].startswith("Better than uniform, too, without knowing the outcome: random.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples__mixed_groups": 0}, "every group has equal rewards"),
        ({"samples__prompts": 8}, "8 prompts are too few"),
        ({"truth__reliability": entry(0.1)}, "90 % of the true advantages' variance is sampling error"),
        ({"truth__reliability": {"mean": None}}, "nearly all of the true advantages' variance"),
        ({"gradients": {}}, "there are no gradients"),
        ({"gradients__effective_prompts": 3.2}, "the true gradient is mostly that of 3 prompts (raise `num_prompts`)"),
    ],
)
def test_no_recommendation_where_the_data_carry_none(changes, message):
    advice = advise(changed(RESULTS, **changes))
    assert advice.method is None
    assert message in advice.headline


def test_what_else_a_user_should_know():
    results = changed(RESULTS, samples__mixed_groups=5) | {"uniform_in_effect": {"dgpo": "set `temperature` to 0.01."}}
    cautions = " ".join(advise(results).cautions)
    assert "dynamic_sampling" in cautions
    assert "that of" not in cautions
    few = advise(changed(RESULTS, gradients__effective_prompts=9.6))
    assert few.method == "otb"
    assert "The true gradient is mostly that of 10 of 32 prompts" in " ".join(few.cautions)
    assert "dgpo is uniform in effect here: set `temperature` to 0.01." in cautions
    assert "only training shows" in cautions
