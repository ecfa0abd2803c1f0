"""Quantities of runs and sentences about them."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from support.comparison import make_comparison, make_run

from trl_credit._util.files import RunFolderError
from trl_credit.comparison import results, worker
from trl_credit.comparison.page import (
    headline,
)
from trl_credit.comparison.plan import (
    Method,
)
from trl_credit.statistics import paired as statistics


def test_history_has_a_value_for_each_update():
    log = [
        {"step": 2, "step_time": 0.5, "reward": 0.25, "completions/mean_length": 10.5, "credit/weight_std": None},
        {"step": 1, "step_time": 0.5, "reward": 0.5, "completions/mean_length": 10.0, "loss": math.nan},
        {"step": 3, "step_time": 0.5, "dynamic_sampling/discarded_tokens": 5.0},
        {"step": 4, "step_time": 1, "completions/mean_length": 1.0, "dynamic_sampling/discarded_tokens": 5.0},
        {"step": 3, "eval_x/avg@8": 0.5},
        {"step": 4, "train_runtime": 3.0},
    ]
    found = worker.history_of(log, completions=4)
    assert found["step"] == [1, 2, 3, 4]
    assert found["reward"] == [0.5, 0.25, None, None]
    assert found["generated_tokens"] == [40, 42, None, 9]
    assert "loss" not in found
    assert "credit/weight_std" not in found
    json.dumps(found, allow_nan=False)


def test_generation_batches_of_an_update():
    """The trainer logs means over them."""
    log = [{"step": 1, "step_time": 1, "completions/mean_length": 10.0, "dynamic_sampling/discarded_tokens": 5.0}]
    assert worker.history_of(log, completions=4, batches=3)["generated_tokens"] == [135]


def test_a_collapsed_method_is_named():
    runs = [{"history": {"credit/effective_fraction": [0.9999, None, 1.0]}}]
    method = Method("sharp?", "sharp", {"method": "dgpo"})
    assert results._collapse(method, runs).startswith(
        "sharp? was uniform in effect (mean effective token fraction 0.99995)"
    )
    assert results._collapse(Method("u", "u", {"method": "uniform"}), runs) is None
    assert results._collapse(method, [{"history": {"credit/effective_fraction": [0.5]}}]) is None
    assert results._collapse(Method("g", "g", {"method": "gone.Method"}), runs) is None


def test_metrics_at_the_target():
    """Each run's mean over the updates that reach it; of the seeds in which both methods do."""
    plan, runs = make_comparison(labels=("uniform", "gcpo"), seeds=8, updates=20, gains=(0.0, 0.0), target=0.9)
    plan.at_target = ["distance", "distence"]
    for label, extra in (("uniform", 0.0), ("gcpo", 5.0)):
        for seed in range(8):
            reached = seed < 7 or label == "uniform"
            # Means of 2: the target is reached at update 11 (seed even) or 12
            last = 11 if seed % 2 == 0 else 12
            rewards = [0.5] * (last - 2) + [0.95] * (20 - last + 2) if reached else [0.5] * 20
            runs[label][seed] = make_run(rewards)
            runs[label][seed]["history"]["distance"] = [seed + extra + step for step in range(1, 21)]
    found = results.summarize(plan, runs)
    uniform, gcpo = (method["quantities"]["at_target/distance"]["by_seed"] for method in found["methods"])
    assert uniform == {str(seed): seed + 10.5 + seed % 2 for seed in range(8)}
    assert gcpo == {str(seed): seed + 15.5 + seed % 2 for seed in range(7)}
    row = results.difference_of(found, "at_target/distance", "gcpo")
    assert (row["seeds"], row["mean"], row["verdict"]) == (list(range(7)), 5.0, "higher")
    assert "distance at the target" in results.to_markdown(found)
    (note,) = [note for note in found["notes"] if "distence" in note]
    assert note.startswith("No run logged 'distence'. Did you mean 'distance'?")


def test_runs_that_do_not_reach_the_target_count_as_later():
    before, after = [10, 20, math.inf, 30, math.inf, 12], [8, math.inf, 40, 30, math.inf, 5]
    # Sizes 2, inf, inf, 0, 0, 7: ranks 3, 5.5, 5.5, 1.5, 1.5, 4
    np.testing.assert_allclose(statistics.signed_ranks(before, after), [-3, 5.5, -5.5, 0, 0, -4])
    found = statistics.paired(before, after, ranks=True)
    assert (found.mean, found.low, found.half_width) == (None, None, None)
    assert (found.lower, found.higher) == (3, 1)
    ranks = [-3, 5.5, -5.5, -4]
    sums = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=4)]
    assert found.p_value == pytest.approx(np.mean(np.array(sums) >= 7))
    with pytest.raises(ValueError, match="by ranks"):
        statistics.paired(before, after)
    with pytest.raises(ValueError, match="nothing to pair"):
        statistics.paired([1.0], [1.0, 2.0])


def test_all_runs_later_than_the_baseline_is_worse():
    found = statistics.paired([10.0] * 8, [math.inf] * 8, ranks=True)
    assert found.p_value == pytest.approx(2 / 2**8)
    assert statistics.verdict(found, found.p_value, 1, larger_is_better=False) == "worse"
    back = statistics.paired([math.inf] * 8, [10.0] * 8, ranks=True)
    assert statistics.verdict(back, back.p_value, 1, larger_is_better=False) == "better"


@pytest.mark.parametrize(("seeds", "methods", "enough"), [(5, 1, False), (6, 1, True), (6, 2, False), (7, 2, True)])
def test_few_seeds_say_nothing(seeds, methods, enough):
    assert statistics.enough_seeds(seeds, methods) is enough
    found = statistics.paired(np.zeros(seeds), np.linspace(1, 1.1, seeds))
    expected = "better" if enough else "too few seeds"
    assert statistics.verdict(found, methods * found.p_value, methods, True) == expected


def test_not_noise_takes_both_p_and_interval():
    found = statistics.paired(np.zeros(8), np.linspace(1, 1.1, 8))
    assert statistics.verdict(found, 0.01, 1, True) == "better"
    assert statistics.verdict(found, 0.01, 1, False) == "worse"
    assert statistics.verdict(found, 0.06, 1, True) == "noise"
    wide = statistics.paired(np.zeros(8), [1, -1, 1, -1, 1, -1, 1, 1])
    assert statistics.verdict(wide, 0.01, 1, True) == "noise"


# Results and report


def test_quantities_of_a_run():
    run = make_run([0.1, 0.5, math.nan, 0.9, 1.0, 0.2, 0.4, 0.6], seconds=16)
    found = results.run_values(run, window=2, target=0.95)
    assert found["mean_reward"] == pytest.approx(np.mean([0.1, 0.5, 0.9, 1.0, 0.2, 0.4, 0.6]))
    assert found["last_reward"] == pytest.approx(0.5)
    assert found["updates_to_target"] == 5  # the mean of 0.9 and 1.0
    assert found["tokens_to_target"] == 5 * 1600
    assert (found["seconds_per_update"], found["seconds"]) == (2, 16)
    assert results.run_values(run, window=8, target=0.95)["tokens_to_target"] == math.inf
    assert "last_reward" not in results.run_values(run | {"accuracy": 0.5}, 2, None)


def test_summary_is_paired_and_json():
    the_plan, runs = make_comparison()
    found = results.summarize(the_plan, runs)
    json.dumps(found, allow_nan=False)
    (row,) = [r for r in found["differences"] if (r["quantity"], r["label"]) == ("mean_reward", "dgpo")]
    before, after = (
        np.array([np.mean(runs[label][s]["history"]["reward"]) for s in range(10)]) for label in ("uniform", "dgpo")
    )
    expected = stats.ttest_rel(after, before).confidence_interval()
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(((after - before).mean(), *expected))
    assert row["half_width"] == pytest.approx((expected.high - expected.low) / 2)
    assert row["p_value"] == pytest.approx(2 / 2**10)
    assert row["p_holm"] == pytest.approx(4 / 2**10)
    assert row["verdict"] == "better"
    assert results.sentence(found, row) == (
        f"mean reward, dgpo \u2212 uniform: +{row['mean']:.3f} (95 % interval {row['low']:.3f} to {row['high']:.3f}): "
        f"better; 10 seeds could show differences from {row['half_width']:.3f}."
    )
    assert found["window"] == 8
    curve = found["methods"][0]["curves"]["reward"]
    first = np.array([np.mean(run["history"]["reward"][:8]) for run in runs["uniform"].values()])
    assert curve["mean"][0] == pytest.approx(first.mean())
    assert len(curve["mean"]) == 73
    text = results.to_markdown(found)
    assert "| mean reward | uniform |" in text
    assert "**better**" in text


def test_seeds_that_are_missing_are_said_and_left_out():
    the_plan, runs = make_comparison()
    del runs["gcpo"][3], runs["uniform"][5]
    found = results.summarize(the_plan, runs)
    by_label = {row["label"]: row["seeds"] for row in found["differences"] if row["quantity"] == "accuracy"}
    assert by_label == {"gcpo": [0, 1, 2, 4, 6, 7, 8, 9], "dgpo": [0, 1, 2, 3, 4, 6, 7, 8, 9]}
    assert any("gcpo: no finished run of seed 3" in note for note in found["notes"])
    assert found["methods"][0]["missing"] == [5]
    runs["uniform"].clear()
    assert results.summarize(the_plan, runs)["differences"] == []
    with pytest.raises(RunFolderError, match="no finished run"):
        results.summarize(the_plan, {label: {} for label in runs})


def test_shares_of_the_ceilings_lead():
    plan, runs = make_comparison(
        labels=("uniform", "half", "oracle"), seeds=8, updates=20, gains=(0.0, 0.05, 0.1), target=0.9
    )
    assert results.summarize(plan, runs)["shares"] == []
    plan.ceiling = "oracle"
    comparison = results.summarize(plan, runs)
    json.dumps(comparison, allow_nan=False)
    by_seed = {m["label"]: list(m["quantities"]["mean_reward"]["by_seed"].values()) for m in comparison["methods"]}
    part, whole = (np.subtract(by_seed[label], by_seed["uniform"]) for label in ("half", "oracle"))
    (row,) = comparison["shares"]
    assert (row["label"], row["share"]) == ("half", pytest.approx(part.mean() / whole.mean()))
    said = f"half {100 * row['share']:.0f} % ({100 * row['low']:.0f} % to {100 * row['high']:.0f} %)"
    assert results.sentences(comparison)[-1] == (
        f"Share of oracle's lead over uniform in mean reward (95 % interval): {said}."
    )
    plan.ceiling, plan.baseline = "uniform", "oracle"
    comparison = results.summarize(plan, runs)
    assert comparison["shares"][0]["share"] is None
    assert results.sentences(comparison)[-1] == (
        "uniform's lead over oracle in mean reward is not beyond noise, so there is none to share."
    )


def test_headlines():
    the_plan, runs = make_comparison()
    assert headline(results.summarize(the_plan, runs)) == (
        "In mean reward dgpo is better than uniform; gcpo does not differ from uniform beyond noise."
    )
    the_plan, runs = make_comparison(seeds=3)
    found = results.summarize(the_plan, runs)
    assert headline(found).startswith("Too few seeds")
    assert all("too few to say anything" in text for text in results.sentences(found))
    the_plan, runs = make_comparison(labels=("uniform",))
    assert headline(results.summarize(the_plan, runs)).startswith("There is nothing to compare")
