import itertools
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from scipy import stats
from transformers import TrainerState

from trl_credit._util.files import RunFolderError
from trl_credit.comparison import cli, output, plan, results, worker
from trl_credit.comparison.page import (
    forest_chart,
    headline,
    learning_chart,
    plot_learning_curves,
    style_of,
    ticks,
    write_learning_report,
)
from trl_credit.comparison.plan import (
    Method,
    Plan,
    command_of,
    make_plan,
    parse_methods,
    parse_seeds,
    read_plan,
    read_recipe,
    run_folder,
    write_plan,
)
from trl_credit.comparison.run import missing, prepare, run_all
from trl_credit.statistics import paired as statistics


ROOT = Path(__file__).resolve().parent.parent
RECIPE = {
    "model_name_or_path": "trl_credit:quickstart",
    "dtype": "float32",
    "dataset_name": "trl_credit:arithmetic",
    "generated_dataset_size": 64,
    "reward_funcs": ["trl_credit.toy.arithmetic.correct_answer"],
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "max_steps": 3,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 40,
    "eval": {"tasks": ["trl_credit:arithmetic"], "n": 2, "generated_dataset_size": 8},
    "save_strategy": "no",
    "seed": 7,
    "output_dir": "elsewhere",
    "credit": "gcpo",
}
SHARP = {"method": "dgpo", "temperature": 0.001}


def make_comparison(
    labels=("uniform", "gcpo", "dgpo"), seeds=10, updates=80, gains=(0.0, 0.0, 0.06), target=0.9, level=0.62, noise=0.05
):
    """A plan and runs whose rewards rise, by as much more as `gains` says."""
    draw = np.random.default_rng(0)
    methods = [Method(label, label, {"method": label, "temperature": 0.5}) for label in labels]
    runs = {label: {} for label in labels}
    for seed in range(seeds):
        start = level + draw.normal(0, 0.02)
        for label, gain in zip(labels, itertools.cycle(gains)):
            rise = 1 - np.exp(-np.arange(updates) / (updates / 3))
            rewards = np.clip(start + (0.28 + gain) * rise + draw.normal(0, noise, updates), 0, 1)
            runs[label][seed] = make_run(rewards, accuracy=float(start + 0.25 + gain + draw.normal(0, 0.01)), draw=draw)
    settings = {"model_name_or_path": "trl_credit:quickstart", "max_steps": updates, "learning_rate": 5e-5}
    the_plan = Plan({}, [], settings, methods, list(range(seeds)), labels[0], target)
    the_plan.command = "trl-credit compare --config recipe.yaml --methods " + " ".join(labels)
    return the_plan, runs


def make_run(rewards, accuracy=None, draw=None, seconds=None):
    draw = np.random.default_rng(0) if draw is None else draw
    updates = len(rewards)
    return {
        "history": {
            "step": list(range(1, updates + 1)),
            "reward": [None if math.isnan(value) else float(value) for value in rewards],
            "entropy": [float(value) for value in 0.3 - 0.002 * np.arange(updates) + draw.normal(0, 0.01, updates)],
            "completions/mean_length": [25.5] * updates,
            "generated_tokens": [1600] * updates,
            "step_time": [0.4 if seconds is None else seconds / updates] * updates,
        },
        "updates": updates,
        "accuracy": accuracy,
        "n": None if accuracy is None else 8,
        "jobs": 1,
        "versions": {"python": "3.11", "torch": "2.8"},
    }


# Plan


@pytest.fixture
def recipe(tmp_path):
    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(RECIPE | changes))
        return path

    return write


@pytest.mark.parametrize(("value", "seeds"), [(3, [0, 1, 2]), ([4], [4]), ([5, 2], [5, 2])])
def test_seeds(value, seeds):
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize("value", [0, -1, True, [], [1, 1], ["a"], [-1], "three", None])
def test_bad_seeds(value):
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds(value)


def test_labels_tell_methods_apart():
    methods, asked = parse_methods(["uniform", "dgpo", json.dumps(SHARP)])
    assert (
        [method.label for method in methods] == asked == ["uniform", "dgpo temperature=0.5", "dgpo temperature=0.001"]
    )
    assert [method.folder for method in methods] == ["uniform", "dgpo-temperature=0.5", "dgpo-temperature=0.001"]
    assert methods[2].credit["temperature"] == 0.001
    (named,), _ = parse_methods([SHARP | {"label": "sharp / DGPO"}])
    assert (named.label, named.folder) == ("sharp / DGPO", "sharp-DGPO")


def test_a_method_keeps_its_folder_when_others_come():
    first, _ = parse_methods(["uniform", "dgpo", {"method": "gcpo", "label": "contrast"}])
    methods, asked = parse_methods([SHARP, "uniform"], earlier=first)
    assert [method.label for method in methods] == [
        "uniform",
        "dgpo temperature=0.5",
        "contrast",
        "dgpo temperature=0.001",
    ]
    assert [method.folder for method in methods] == ["uniform", "dgpo", "contrast", "dgpo-temperature=0.001"]
    assert asked == ["dgpo temperature=0.001", "uniform"]
    again, _ = parse_methods(["uniform", "dgpo", "gcpo", SHARP], earlier=methods)
    assert again == methods


def test_the_recipes_own_method_by_name_has_its_parameters():
    (uniform, gcpo), _ = parse_methods(["uniform", "gcpo"], {"method": "gcpo", "negative_prompt": "!{prompt}"})
    assert uniform.credit == {"method": "uniform"}
    assert gcpo.credit["negative_prompt"] == "!{prompt}"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "No methods"),
        (None, "No methods"),
        (["dgpoo"], "Did you mean 'dgpo'"),
        (["uniform", "uniform"], "there twice"),
        (["uniform", {"method": "uniform", "label": "x"}], "there twice"),
        ([{"method": "dgpo", "temperatur": 1}], "Did you mean 'temperature'"),
        (['{"method": dgpo}'], "not valid JSON"),
        ([{"method": "gcpo", "label": "uniform"}, "uniform"], "Two methods have the label 'uniform'"),
        ([{"method": "gcpo", "label": 3}], "must be text"),
    ],
)
def test_bad_methods(methods, message):
    with pytest.raises(ValueError, match=message):
        parse_methods(methods)


def test_the_recipes_section(recipe):
    path = recipe(compare={"methods": ["uniform", SHARP], "seeds": [3, 5], "target_reward": 0.9})
    fields, section = read_recipe(path)
    assert "compare" not in fields
    assert section["seeds"] == [3, 5]
    found = make_plan(path, path.parent / "out")
    assert [method.label for method in found.methods] == ["uniform", "dgpo"]
    assert (found.seeds, found.baseline, found.target_reward) == ([3, 5], "uniform", 0.9)
    found = make_plan(
        path, path.parent / "out", methods=["uniform", "gcpo"], seeds=2, baseline="gcpo", target_reward=0.5
    )
    assert [method.label for method in found.methods] == ["uniform", "gcpo"]
    assert (found.seeds, found.baseline, found.target_reward) == ([0, 1], "gcpo", 0.5)
    assert not {"credit", "seed", "output_dir"} & set(found.recipe)
    assert found.settings["learning_rate"] == 1e-3
    assert "credit" not in found.settings
    assert not (path.parent / "out").exists()


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"compare": {"method": ["uniform"]}}, {}, "Did you mean 'methods'"),
        ({"compare": ["uniform"]}, {}, "`compare` must be a mapping"),
        ({"max_step": 3}, {}, "Did you mean 'max_steps'"),
        ({}, {"overrides": ["--max_stepz", "4"]}, "Did you mean 'max_steps'"),
        ({}, {"overrides": ["--credit", "gcpo"]}, "use --methods"),
        ({}, {"overrides": ["--seed=3"]}, "use --seeds"),
        ({}, {"overrides": ["--logging-steps", "5"]}, "`logging_steps` has no effect"),
        ({}, {"baseline": "dgpo"}, "not among the methods"),
        ({"compare": {"target_reward": "high"}}, {}, "`target_reward` must be a number"),
        ({"importance_sampling_level": "sequence"}, {}, "cancels the token credit of 'gcpo'"),
        ({"max_steps": 0}, {}, "`max_steps` must be"),
        ({"reward_funcs": ["no.such.reward"]}, {}, "no.such.reward"),
        ({"model_name_or_path": "./missing"}, {}, "no folder"),
        ({"eval": {"task": ["aime24"]}}, {}, "Did you mean 'tasks'"),
    ],
)
def test_everything_is_checked_before_anything_runs(recipe, tmp_path, changes, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_plan(recipe(**changes), tmp_path / "out", methods=["uniform", "gcpo"], **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_grows_but_is_of_one_experiment(recipe, tmp_path):
    path, out = recipe(), tmp_path / "out"
    out.mkdir()
    first = make_plan(path, out, methods=["gcpo", "dgpo"], seeds=2, baseline="dgpo")
    plan.write_plan(out, first)
    assert plan.read_plan(out).to_dict() == first.to_dict()
    grown = make_plan(path, out, methods=[SHARP, "dgpo"], seeds=[1, 4])
    assert [method.label for method in grown.methods] == ["gcpo", "dgpo temperature=0.5", "dgpo temperature=0.001"]
    assert (grown.seeds, grown.baseline) == ([0, 1, 4], "dgpo temperature=0.5")
    assert [(method.label, seed) for method, seed in missing(grown, out)] == [
        ("dgpo temperature=0.001", 1),
        ("dgpo temperature=0.5", 1),
        ("dgpo temperature=0.001", 4),
        ("dgpo temperature=0.5", 4),
    ]
    done = run_folder(out, grown.method("dgpo temperature=0.5"), 1)
    assert done == out / "runs" / "dgpo" / "seed-1"
    done.mkdir(parents=True)
    (done / "run.json").write_text("{}")
    assert len(missing(grown, out)) == 3
    with pytest.raises(RunFolderError, match=r"`max_steps`: 3 there, 4 now"):
        make_plan(path, out, methods=["gcpo"], overrides=["--max_steps", "4"])
    with pytest.raises(RunFolderError, match=r"`launch`: \[\] there"):
        make_plan(path, out, methods=["gcpo"], launch=["--num_processes", "2"])
    # The same value from elsewhere is no difference
    make_plan(path, out, methods=["gcpo"], overrides=["--max_steps", "3"])


def test_a_folder_that_is_none(tmp_path, recipe):
    with pytest.raises(RunFolderError, match=r"no plan\.json"):
        plan.read_plan(tmp_path)
    (tmp_path / "plan.json").write_text('{"format": 1}')
    with pytest.raises(RunFolderError, match="not what `trl-credit compare` writes"):
        plan.read_plan(tmp_path)


def test_the_command_makes_the_plan_again(recipe, tmp_path):
    path, out = recipe(), tmp_path / "out"
    found = make_plan(path, out, methods=["uniform", SHARP], seeds=2, target_reward=0.5, overrides=["--beta", "0"])
    words = shlex.split(found.command)[2:]
    arguments, overrides = cli.parser().parse_known_args(words)
    assert overrides == ["--beta", "0"]
    again = make_plan(
        path, out, overrides, arguments.methods, arguments.seeds[0], arguments.baseline, arguments.target_reward
    )
    assert again == found


def test_what_a_run_is_told(recipe, tmp_path):
    out = tmp_path / "out"
    found = make_plan(recipe(), out, methods=["uniform", "gcpo"], seeds=2, overrides=["--max_steps", "4"])
    spec = prepare(found, out, found.method("gcpo"), 1, jobs=2, keep_models=False)
    given = dict(zip(spec["arguments"][::2], spec["arguments"][1::2], strict=True))
    assert json.loads(given["--credit"])["method"] == "gcpo"
    assert (given["--seed"], given["--max_steps"], given["--logging_steps"]) == ("1", "4", "1")
    assert given["--output_dir"] == str(out / "runs" / "gcpo" / "seed-1")
    assert "--resume_from_checkpoint" not in given
    assert spec["one_thread"]


def test_an_unfinished_run_leaves_nothing_but_whole_checkpoints(recipe, tmp_path):
    out = tmp_path / "out"
    found = make_plan(recipe(), out, methods=["uniform"], seeds=1)
    folder = run_folder(out, found.methods[0], 0)
    (folder / "eval" / "step-9").mkdir(parents=True)
    (folder / "checkpoint-2").mkdir()  # not whole
    assert prepare(found, out, found.methods[0], 0, 1, False)["resumed_from"] is None
    assert list(folder.iterdir()) == []
    for step in (2, 9):
        (folder / "eval" / f"step-{step}").mkdir(parents=True)
    (folder / "checkpoint-2").mkdir()
    save_file({}, folder / "checkpoint-2" / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, folder / "checkpoint-2" / name)
    TrainerState().save_to_json(str(folder / "checkpoint-2" / "trainer_state.json"))
    spec = prepare(found, out, found.methods[0], 0, 1, False)
    assert spec["resumed_from"] == 2
    assert spec["arguments"][-2:] == ["--resume_from_checkpoint", "auto"]
    assert [path.name for path in (folder / "eval").iterdir()] == ["step-2"]


# Runs


def fake_start(spec):
    folder = Path(spec["folder"])
    (folder / "log.txt").write_text("first\nValueError: what was wrong\n")
    if spec["seed"] == 1 and spec["label"] == "gcpo":
        raise SystemExit(3)
    run = make_run(np.full(8, 0.5 + 0.1 * spec["seed"]), accuracy=0.25)
    (folder / "run.json").write_text(json.dumps(run))


def test_a_failed_run_is_reported_and_the_others_go_on(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_credit.comparison.run.start", fake_start)
    monkeypatch.setattr("trl_credit.comparison.run.context", lambda: multiprocessing.get_context("fork"))
    out, lines = tmp_path / "out", []
    out.mkdir()
    found = make_plan(recipe(), out, methods=["uniform", "gcpo"], seeds=3)
    plan.write_plan(out, found)
    assert run_all(found, out, jobs=2, say=lines.append) == ["gcpo, seed 1"]
    assert lines[0] == "6 runs to make, 2 at a time."
    assert sum("reward 0.500 in the last quarter, accuracy 25.0 %" in line for line in lines) == 2
    assert any("gcpo, seed 1: failed with exit status 3" in line and "what was wrong" in line for line in lines)
    assert any("left" in line for line in lines)
    lines.clear()
    assert run_all(found, out, say=lines.append) == ["gcpo, seed 1"]
    assert lines[0] == "5 finished runs are kept."
    summary = output.write_results(out)
    assert "gcpo: no finished run of seed 1; its statistics are those of the others." in summary["notes"]
    (row,) = [row for row in summary["differences"] if row["quantity"] == "accuracy"]
    assert row["seeds"] == [0, 2]
    for name in ("comparison.json", "comparison.md", "comparison.html", "curves.png", "curves.svg"):
        assert (out / name).stat().st_size > 500


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


def test_models_are_removed(tmp_path):
    for name in ("run.json", "log.txt", "model.safetensors", "config.json", "training_args.bin"):
        (tmp_path / name).write_text("x")
    for name in ("eval", "checkpoint-3"):
        (tmp_path / name).mkdir()
    worker.remove_models(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "log.txt", "run.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config"),
        (["reprt"], "unknown command 'reprt'"),
        (["--config", "x.yaml", "--jobs", "0"], "`--jobs` must be at least 1"),
        (["--config", "x.yaml", "--jobs", "2", "--num_processes", "2"], "one after the other"),
        (["--config", "x.yaml", "--seeds", "many"], "invalid int value"),
        (["report", "no/such/folder"], "no plan.json"),
    ],
)
def test_wrong_use_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(words)
    assert error.value.code == 2
    out = capsys.readouterr()
    assert message in out.err
    assert len(out.err.strip().splitlines()) == 1
    assert not out.out


# Statistics


def test_smoothing_is_the_mean_of_the_last_updates():
    values = np.array([1.0, math.nan, 4.0, 2.0, math.nan, math.nan])
    expected = [np.nan] + [
        np.nanmean(values[i - 1 : i + 1]) if not np.isnan(values[i - 1 : i + 1]).all() else np.nan for i in range(1, 6)
    ]
    np.testing.assert_allclose(statistics.smoothed(values, 2), expected)
    np.testing.assert_allclose(statistics.smoothed(values, 1), values)
    assert np.isnan(statistics.smoothed([1.0], 2)).all()
    assert statistics.area(values) == pytest.approx(7 / 3)


def test_the_band_is_students_interval():
    values = np.random.default_rng(0).normal(size=(7, 5))
    values[2:, 3] = np.nan
    values[1:, 4] = np.nan
    mean, low, high = statistics.band(values, 0.9)
    for u in range(4):
        known = values[~np.isnan(values[:, u]), u]
        expected = stats.ttest_1samp(known, 0).confidence_interval(0.9)
        assert (mean[u], low[u], high[u]) == pytest.approx((known.mean(), expected.low, expected.high))
    assert mean[4] == values[0, 4]
    assert np.isnan(low[4])
    assert statistics.interval([3.0]) == (3.0, None, None)


def test_the_interval_covers_what_it_says():
    draw = np.random.default_rng(5)
    found = [statistics.interval(draw.normal(0.3, 2.0, 6)) for _ in range(2000)]
    covered = np.mean([low <= 0.3 <= high for _, low, high in found])
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("count", [2, 3, 6, 10])
@pytest.mark.parametrize("ties", [False, True])
def test_permutation_is_of_all_sign_flips(count, ties):
    draw = np.random.default_rng(count)
    differences = draw.integers(-3, 5, count) / 8 if ties else draw.normal(0.3, 1, count)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=count)]
    expected = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12)
    assert statistics.sign_flip_p(differences) == pytest.approx(expected)


def test_many_seeds_draw_flips():
    differences = np.random.default_rng(1).normal(0.4, 1, 24)
    p = statistics.sign_flip_p(differences)
    assert p == statistics.sign_flip_p(differences)
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert statistics.sign_flip_p(np.full(24, 1.0)) == pytest.approx(2 / (statistics.MOST_FLIPS + 1))
    assert statistics.sign_flip_p([0.0, 0.0]) == statistics.sign_flip_p([1.0]) == 1.0


def test_p_is_uniform_where_nothing_differs():
    draw = np.random.default_rng(3)
    p = [statistics.sign_flip_p(draw.normal(size=8)) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.025)


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


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


@pytest.mark.parametrize(("seeds", "updates"), [(1, 1), (1, 3), (2, 12), (10, 80)])
def test_pages_and_pictures_of_any_size(tmp_path, seeds, updates):
    the_plan, runs = make_comparison(seeds=seeds, updates=updates)
    for run in runs["gcpo"].values():
        run["history"]["reward"] = [0.0] * updates
    found = results.summarize(the_plan, runs)
    write_learning_report(tmp_path / "a.html", found)
    plot_learning_curves(tmp_path / "a.png", found)
    plot_learning_curves(tmp_path / "a.svg", found)
    text = (tmp_path / "a.html").read_text()
    assert not re.search(r"\bnan\b", text)
    assert "http" not in text.replace("http-equiv", "")
    assert (learning_chart(found, "reward") is None) is False
    output.show(found)


def test_hostile_labels_are_text(tmp_path):
    hostile = "</script><script>alert(1)</script> $\\frac|"
    the_plan, runs = make_comparison(labels=("uniform", hostile), seeds=3, updates=10)
    found = results.summarize(the_plan, runs)
    write_learning_report(tmp_path / "a.html", found)
    assert "<script>alert" not in (tmp_path / "a.html").read_text()
    plot_learning_curves(tmp_path / "a.png", found)
    output.show(found)


def test_labels_that_nothing_can_encode_do_not_end_a_finished_comparison(tmp_path, capsys):
    label = "run[/x]\x1b[31m\ud800\r"
    the_plan, runs = make_comparison(labels=("uniform", label), seeds=3, updates=10)
    found = results.summarize(the_plan, runs)
    write_learning_report(tmp_path / "a.html", found)
    for suffix in ("png", "svg"):
        plot_learning_curves(tmp_path / f"a.{suffix}", found)
    (tmp_path / "a.md").write_text(results.to_markdown(found), encoding="utf-8")
    output.show(found)
    out = capsys.readouterr().out
    assert "run[/x]\\x1b[31m\\ud800\\r \u2212 uniform: " in out
    assert "\x1b" not in out + (tmp_path / "a.md").read_text(encoding="utf-8")


def test_a_comparison_s_files_have_no_keys_and_its_page_no_folders(tmp_path):
    the_plan, runs = make_comparison(seeds=3, updates=10)
    the_plan.recipe = {"hub_token": "hf_SECRET", "model_name_or_path": "/home/jane/model"}
    the_plan.overrides = ["--vllm_server_base_url", "http://h/v1?key=SECRET"]
    the_plan.settings = dict(the_plan.recipe)
    the_plan.command = command_of(the_plan, Path("/home/jane/recipe.yaml"), Path("/home/jane/out"))
    assert "SECRET" not in the_plan.command
    write_plan(tmp_path, the_plan)
    assert "SECRET" not in (tmp_path / "plan.json").read_text()
    write_learning_report(tmp_path / "a.html", results.summarize(read_plan(tmp_path), runs))
    text = (tmp_path / "a.html").read_text()
    assert "SECRET" not in text
    assert "jane" not in text
    assert "recipe.yaml" in text


def test_styles_differ_without_colour():
    styles = [style_of(place) for place in range(36)]
    assert len(set(styles)) == 36
    assert len({dashes for _, dashes in styles[:6]}) == 6


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.3, 0.3), (8, 80), (0.6021, 0.6022), (1e3, 9e5)])
def test_ticks_are_round_and_within(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert low - 1e-9 <= found[0] < found[-1] <= high + 1e-6 * high
    assert len({round(b - a, 9) for a, b in itertools.pairwise(found)}) == 1


def test_forest_needs_differences():
    the_plan, runs = make_comparison()
    found = results.summarize(the_plan, runs)
    assert "row-label" in forest_chart(found, results.BY_NAME["mean_reward"])
    assert forest_chart(found | {"differences": []}, results.BY_NAME["mean_reward"]) is None


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(tmp_path, width):
    playwright = pytest.importorskip("playwright.sync_api")
    the_plan, runs = make_comparison(labels=("uniform", "gcpo", "dgpo temperature=adaptive effective_fraction=0.3"))
    write_learning_report(tmp_path / "a.html", results.summarize(the_plan, runs))
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        faults, requests = [], []
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "a.html").as_uri())
        lines = page.locator("figure.first polyline")
        assert lines.count() == 3
        page.locator('[data-toggle="1"]').uncheck()
        assert [lines.nth(i).is_visible() for i in range(3)] == [True, False, True]
        plot = page.locator("figure.first svg.plot")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 50)
        readout = page.locator("figure.first .readout").text_content()
        assert readout.startswith("update 80: uniform 0.")
        assert "gcpo" not in readout
        page.locator("#seeds th", has_text="mean reward").get_by_role("button").click()
        cells = page.locator("#seeds tbody tr td:nth-child(3)").all_text_contents()
        assert cells == sorted(cells)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert faults == []
    assert len(requests) == 1


# The whole of it


def command(*words, path, out):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, "-m", "trl_credit.cli", "compare", "--config", str(path), "--output_dir", str(out), *words]
    return subprocess.Popen(
        line,
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, out + err
    return out


def contents(out):
    """Everything that may not depend on time or on how many runs there were at a time."""
    found = {}
    for path in sorted(out.glob("runs/*/seed-*/run.json")):
        run = json.loads(path.read_text())
        del run["history"]["step_time"]
        found[str(path.relative_to(out))] = run["history"], run["accuracy"], run["evaluations"], run["credit"]
    return found


def await_runs(out, count, process):
    deadline = time.monotonic() + 300
    while len(list(out.glob("runs/*/seed-*/run.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_with_equal_results(recipe, tmp_path):
    path = recipe(compare={"methods": ["uniform", SHARP], "seeds": 2})
    whole, killed, stopped = (tmp_path / name for name in ("whole", "killed", "stopped"))
    text = finish(command(path=path, out=whole))
    assert "4 runs to make, 1 at a time." in text
    assert "too few to say anything" in text
    assert len(contents(whole)) == 4
    rewards = {name: run[0]["reward"] for name, run in contents(whole).items()}
    # Paired: the same start and problems within a seed, others in the next
    assert rewards["runs/uniform/seed-0/run.json"][0] == rewards["runs/dgpo/seed-0/run.json"][0]
    histories = [run[0] for run in contents(whole).values()]
    assert len({json.dumps(history["num_tokens"]) for history in histories}) > 1
    for folder in whole.glob("runs/*/seed-*"):
        assert sorted(p.name for p in folder.iterdir()) == ["eval", "log.txt", "run.json"]

    process = command("--jobs", "2", path=path, out=killed)
    await_runs(killed, 1, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(1)
    there = len(contents(killed))
    text = finish(command("--jobs", "2", path=path, out=killed))
    assert f"{there} finished run" in text
    assert contents(killed) == contents(whole)

    process = command(path=path, out=stopped)
    await_runs(stopped, 1, process)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "Finished runs are kept" in err
    finish(command(path=path, out=stopped))
    assert contents(stopped) == contents(whole)

    process = command("--max_steps", "4", path=path, out=whole)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "`max_steps`: 3 there, 4 now" in err
    assert len(err.strip().splitlines()) == 1

    text = finish(command("--methods", "uniform", "gcpo", "--seeds", "1", path=path, out=whole))
    assert "1 finished run is kept" in text
    assert set(json.loads((whole / "comparison.json").read_text())["methods"][2]["missing"]) == {1}


@pytest.mark.slow
def test_runs_on_two_processes(recipe, tmp_path):
    path, out = recipe(compare={"methods": ["uniform", SHARP], "seeds": 1}), tmp_path / "out"
    finish(command("--num_processes", "2", path=path, out=out))
    for history, accuracy, *_ in contents(out).values():
        assert len(history["reward"]) == 3
        assert history["num_tokens"][0] > 400  # of two processes
        assert accuracy is not None


@pytest.mark.slow
def test_a_run_that_fails(recipe, tmp_path):
    (tmp_path / "failing.py").write_text(
        "def reward(completions, **kwargs):\n"
        "    if kwargs['trainer_state'].global_step == 1:\n"
        "        raise RuntimeError('the reward is broken')\n"
        "    return [0.5] * len(completions)\n"
    )
    path = recipe(reward_funcs=["failing.reward"], compare={"methods": ["uniform"], "seeds": 1})
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [
        sys.executable,
        "-m",
        "trl_credit.cli",
        "compare",
        "--config",
        str(path),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    found = subprocess.run(line, env=environment, cwd=tmp_path, text=True, capture_output=True, timeout=300)
    assert "failed with exit status 1" in found.stdout
    assert "the reward is broken" in found.stdout
    assert found.returncode == 1, found.stderr
    assert "Failed: uniform, seed 0" in found.stdout
    assert not found.stderr
