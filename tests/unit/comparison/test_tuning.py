"""Values of the recipe's fields that are chosen for each method on seeds of their own."""

import itertools
import json
from pathlib import Path

import pytest
from support.comparison import fork, make_run

from trl_credit._util.files import RunFolderError
from trl_credit.comparison.plan import Method, make_plan, read_plan, write_plan
from trl_credit.comparison.results import summarize, to_markdown
from trl_credit.comparison.tuning import (
    Tuning,
    arm_label,
    choose,
    parse_tuning,
    plan_tuning,
    record_of,
    sentences_of,
    table_of,
    tune,
    tuned_methods,
)


RATES = {"learning_rate": [1e-5, 3e-5, 1e-4]}
NOTHING = (None, None, None)
METHODS = [Method("uniform", "uniform", {"method": "uniform"}), Method("gcpo", "gcpo", {"method": "gcpo"})]


def runs_of(tuning, rewards):
    """Runs of constant reward: by method, the rewards of each combination, plus a hundredth for each later seed."""
    return {
        arm_label(label, values): {seed: make_run([reward + i / 100] * 5) for i, seed in enumerate(tuning.seeds)}
        for label, of_method in rewards.items()
        for values, reward in zip(tuning.combinations(), of_method, strict=True)
    }


def test_values_from_words_and_from_a_recipe():
    assert parse_tuning(["learning_rate=1e-5, 3e-5,1e-4"]) == Tuning(RATES, [1000, 1001, 1002])
    assert parse_tuning(["learning-rate=[1e-5, 3e-5, 1e-4]"], 4) == Tuning(RATES, [1000, 1001, 1002, 1003])
    assert parse_tuning(RATES, [7]) == parse_tuning(RATES, "[7]") == Tuning(RATES, [7])
    assert parse_tuning(RATES, "2") == Tuning(RATES, [1000, 1001])
    assert parse_tuning(RATES, [7, 5], "accuracy") == Tuning(RATES, [7, 5], "accuracy")
    assert parse_tuning({"lr_scheduler_type": ["constant", "linear"], **RATES}, 1).combinations()[3] == {
        "lr_scheduler_type": "linear",
        "learning_rate": 1e-5,
    }
    assert parse_tuning(None) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["learning_rate"],), "write FIELD=VALUE,VALUE"),
        ((["learning_rate=1e-5"],), "'learning_rate' needs at least two different values"),
        ((["learning_rate=1e-5,1e-5"],), "at least two different values"),
        (({"learning_rate": 1e-5},), "at least two different values"),
        ((["learning_rate=1,2", "learning-rate=3,4"],), "listed twice"),
        ((["learning_rate=[1, 2"],), "the values of 'learning_rate' are not valid YAML"),
        ((RATES, 0), "`tuning_seeds`"),
        ((RATES, [3, 3]), "`tuning_seeds`"),
        ((RATES, None, "reward"), "`tune_by`"),
        ((None, 3), "`tuning_seeds` has no effect without `tune`"),
        ((None, None, "accuracy"), "`tune_by` has no effect without `tune`"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_tuning(*arguments)


def test_the_plan_has_each_method_with_each_value(comparison_recipe, tmp_path):
    section = {"methods": ["uniform", "gcpo"], "ceiling": "gcpo", "tune": RATES, "tuning_seeds": 2}
    path = comparison_recipe(compare=section)
    tuning, plan, methods = plan_tuning(path, tmp_path / "out", NOTHING)
    assert [method.label for method in methods] == ["uniform", "gcpo"]
    assert [method.label for method in plan.methods][:2] == [
        "uniform learning_rate=1e-05",
        "uniform learning_rate=3e-05",
    ]
    assert [method.settings["learning_rate"] for method in plan.methods] == 2 * RATES["learning_rate"]
    assert plan.seeds == tuning.seeds == [1000, 1001]
    assert not (tmp_path / "out").exists()
    # The command line comes first
    tuning, plan, _ = plan_tuning(path, tmp_path / "out", (["max_grad_norm=0.1,1"], 5, None), methods=["gcpo"])
    assert (len(plan.methods), len(plan.seeds)) == (2, 5)
    assert plan_tuning(comparison_recipe(), tmp_path / "out", NOTHING) is None


@pytest.mark.parametrize(
    ("section", "arguments", "message"),
    [
        ({"tuning_seeds": [3, 4]}, {"seeds": 4}, r"`tuning_seeds` \(3, 4\) and `seeds` \(0, 1, 2, 3\) share 3, which"),
        ({"methods": [{"method": "uniform", "settings": {"learning_rate": 1.0}}]}, {}, "sets 'learning_rate' itself"),
        ({"tune": {"learning_rat": [1, 2]}}, {}, "`learning_rat` in `tune`. Did you mean 'learning_rate'"),
        ({"tune": {"lr": [1, 2]}}, {}, "`lr` in `tune`. Write `learning_rate: ..."),
        ({"tune": {"max_steps": [1, 2]}}, {}, "`tune`: 'max_steps' cannot differ"),
        ({"tune": {"seed": [1, 2]}}, {}, "`tune`: 'seed' cannot differ"),
        (
            {"tune": {"learning_rate": [1, "fast"]}},
            {},
            "`tune`: `learning_rate` must be a non-negative number, got 'fast'",
        ),
        ({}, {"baseline": "dgpo"}, "'dgpo' is not among the methods"),
    ],
)
def test_a_bad_plan_is_refused_before_any_run(section, arguments, message, comparison_recipe, tmp_path):
    path = comparison_recipe(compare={"methods": ["uniform", "gcpo"], "tune": RATES} | section)
    with pytest.raises(ValueError, match=message):
        plan_tuning(path, tmp_path / "out", NOTHING, **arguments)


def test_each_method_gets_its_own_best():
    tuning = Tuning(RATES, [1000, 1001])
    rows = choose(tuning, METHODS, runs_of(tuning, {"uniform": (0.1, 0.3, 0.2), "gcpo": (0.1, 0.2, 0.4)}))
    chosen = {row["label"]: row for row in rows if row["chosen"]}
    assert {label: row["values"]["learning_rate"] for label, row in chosen.items()} == {"uniform": 3e-5, "gcpo": 1e-4}
    assert chosen["uniform"]["mean"] == pytest.approx(0.305)
    assert chosen["uniform"]["by_seed"] == {"1000": pytest.approx(0.3), "1001": pytest.approx(0.31)}
    assert (chosen["uniform"]["at_edge"], chosen["gcpo"]["at_edge"]) == ([], ["learning_rate"])
    _, gcpo = tuned_methods(METHODS, rows)
    assert gcpo == {"method": "gcpo", "label": "gcpo", "settings": {"learning_rate": 1e-4}}
    said = " ".join(sentences_of(record_of(tuning, rows)))
    assert "uniform learning_rate 3e-05; gcpo learning_rate 0.0001." in said
    assert "The best learning_rate of gcpo (0.0001) is at the edge of what was tried" in said


def test_a_value_without_every_seed_is_not_chosen():
    tuning = Tuning(RATES, [1000, 1001])
    runs = runs_of(tuning, {"uniform": (0.1, 0.9, 0.2)})
    runs["uniform learning_rate=3e-05"][1001] = make_run([float("nan")] * 5)
    rows = choose(tuning, METHODS[:1], runs)
    assert [row["chosen"] for row in rows] == [False, False, True]
    with pytest.raises(ValueError, match=r"no value of 'uniform' has the accuracy of every seed: evaluate"):
        choose(Tuning(RATES, [1000], "accuracy"), METHODS[:1], runs)


def test_a_combination_with_a_failed_run_loses():
    tuning = Tuning(RATES, [1000, 1001])
    runs = runs_of(tuning, {"uniform": (0.1, 0.9, 0.2)})  # even if it was made after all
    failed = {"uniform learning_rate=3e-05": "seed 1001: FloatingPointError: the loss is not finite"}
    record = record_of(tuning, choose(tuning, METHODS[:1], runs, failed))
    assert [row["chosen"] for row in record["rows"]] == [False, False, True]
    assert [row["failed"] for row in record["rows"]] == [None, *failed.values(), None]
    assert table_of(record)[1][0][2] == "failed"
    said = " ".join(sentences_of(record))
    assert "Failed, and so not chosen: uniform learning_rate 3e-05 (seed 1001: FloatingPointError" in said
    json.dumps(record)
    all_failed = {arm_label("uniform", values): f"seed 1000: no {i}" for i, values in enumerate(tuning.combinations())}
    with pytest.raises(
        ValueError, match=r"every value of 'uniform' failed: .* learning_rate 0\.0001 \(seed 1000: no 2\)"
    ):
        choose(tuning, METHODS[:1], {}, all_failed)


def test_two_values_cannot_show_an_optimum():
    tuning = Tuning({"learning_rate": [1e-5, 3e-5], "max_grad_norm": [0.1, 1, 10]}, [1000])
    rewards = (0.1, 0.2, 0.1, 0.2, 0.9, 0.2)
    said = " ".join(
        sentences_of(record_of(tuning, choose(tuning, METHODS, runs_of(tuning, {"uniform": rewards, "gcpo": rewards}))))
    )
    assert said.count("Two values of learning_rate cannot show an optimum") == 1
    assert "The best" not in said


def failing_start(spec):
    """A run that fails at the largest learning rate with the second seed."""
    folder = Path(spec["folder"])
    words = dict(itertools.pairwise(spec["arguments"]))
    with (folder / "log.txt").open("a") as log:
        log.write("first\n  FloatingPointError: the loss is not finite\n")
    if words["--learning_rate"] == "0.0001" and spec["seed"] == 1001:
        raise SystemExit(1)
    (folder / "run.json").write_text(json.dumps(make_run([10 * float(words["--learning_rate"])] * 4)))


def test_a_failed_tuning_run_does_not_stop_the_comparison(comparison_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_credit.comparison.run.start", failing_start)
    monkeypatch.setattr("trl_credit.comparison.run.start_process", fork)
    path, out, lines = comparison_recipe(), tmp_path / "out", []
    asked = {"methods": ["uniform"], "seeds": 1}
    planned = plan_tuning(path, out, (RATES, 2, None), **asked)
    methods, record = tune(*planned, out, say=lines.append)
    assert methods == [{"method": "uniform", "label": "uniform", "settings": {"learning_rate": 3e-5}}]
    assert record["rows"][2]["failed"] == "seed 1001: FloatingPointError: the loss is not finite"
    assert "Failed, and so not chosen: uniform learning_rate 0.0001 (seed 1001:" in lines[-1]
    assert tune(*planned, out, say=lines.append)[1] == record  # nothing is chosen for good, so it tries again
    log = out / "tuning" / "runs" / "uniform-learning_rate=0.0001" / "seed-1001" / "log.txt"
    assert "1 run to make, 1 at a time." in lines
    write_plan(out, make_plan(path, out, **(asked | {"methods": methods}), tuning=record))
    log.unlink()
    planned = plan_tuning(path, out, (RATES, 2, None), **asked)
    assert tune(*planned, out, say=lines.append)[1] == record
    assert not log.exists()


def test_words_have_no_edge():
    tuning = Tuning({"lr_scheduler_type": ["constant", "linear"]}, [1000])
    rows = choose(tuning, METHODS[:1], runs_of(tuning, {"uniform": (0.1, 0.2)}))
    assert [row["at_edge"] for row in rows] == [[], []]


def tuned_plan(path, out, rewards=(0.1, 0.3, 0.2), methods=("uniform",), values=RATES):
    tuning, _, asked = plan_tuning(path, out, (values, [1000, 1001], None), methods=list(methods), seeds=2)
    rows = choose(tuning, asked, runs_of(tuning, {method.label: rewards for method in asked}))
    return make_plan(path, out, methods=tuned_methods(asked, rows), seeds=2, tuning=record_of(tuning, rows))


def test_the_comparison_keeps_what_was_tuned(comparison_recipe, tmp_path):
    path, out = comparison_recipe(), tmp_path / "out"
    plan = tuned_plan(path, out)
    assert [(method.label, method.settings) for method in plan.methods] == [("uniform", {"learning_rate": 3e-5})]
    assert "--tune 'learning_rate=[1e-05, 3e-05, 0.0001]' --tuning_seeds 2 --tune_by mean_reward" in plan.command
    assert "settings" not in plan.command
    out.mkdir()
    write_plan(out, plan)
    assert read_plan(out) == plan_without_asked(plan)
    # The same again, and another method later
    assert tuned_plan(path, out).methods == plan.methods
    both = tuned_plan(path, out, methods=["gcpo"])
    assert [method.label for method in both.methods] == ["uniform", "gcpo"]
    assert {row["label"] for row in both.tuning["rows"]} == {"uniform", "gcpo"}
    with pytest.raises(RunFolderError, match="has a comparison that was tuned by"):
        make_plan(path, out, methods=["uniform"], seeds=2)
    other = {"learning_rate": [1e-5, 3e-5, 2e-4]}
    with pytest.raises(RunFolderError, match="tune as before"):  # before any run
        plan_tuning(path, out, (other, [1000, 1001], None), methods=["uniform"], seeds=2)


def test_another_method_is_compared_with_a_baseline_in_the_folder(comparison_recipe, tmp_path):
    path, out = comparison_recipe(), tmp_path / "out"
    out.mkdir()
    write_plan(out, tuned_plan(path, out))
    given = (RATES, [1000, 1001], None)
    _, _, asked = plan_tuning(path, out, given, methods=["gcpo"], seeds=2, baseline="uniform")
    assert [method.label for method in asked] == ["gcpo"]
    with pytest.raises(ValueError, match="'dgpo' is not among the methods"):
        plan_tuning(path, out, given, methods=["gcpo"], seeds=2, baseline="dgpo")


def plan_without_asked(plan):
    return type(plan).from_dict(json.loads(json.dumps(plan.to_dict())))


def test_a_comparison_that_was_not_tuned_stays_so(comparison_recipe, tmp_path):
    path, out = comparison_recipe(), tmp_path / "out"
    out.mkdir()
    write_plan(out, make_plan(path, out, methods=["uniform"], seeds=2))
    with pytest.raises(RunFolderError, match="was not tuned"):  # before any run
        plan_tuning(path, out, (RATES, [1000, 1001], None), methods=["uniform"], seeds=2)


def test_the_tables(comparison_recipe, tmp_path):
    plan = tuned_plan(comparison_recipe(), tmp_path / "out")
    columns, rows = table_of(plan.tuning)
    assert columns == ["mean reward", "learning_rate 1e-05", "learning_rate 3e-05", "learning_rate 0.0001"]
    assert rows == [["uniform", "0.105 ± 0.064", "0.305 ± 0.064 *", "0.205 ± 0.064"]]
    runs = {"uniform": {seed: make_run([0.5] * 6) for seed in plan.seeds}}
    comparison = summarize(plan, runs)
    assert comparison["tuning"] == plan.tuning
    assert "Tuning" not in to_markdown(comparison)
