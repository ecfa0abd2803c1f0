"""Comparisons that are killed or fail, then continue."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT
from support.comparison import command, contents, finish


SHARP = {"method": "dgpo", "temperature": 0.001}


def await_runs(out, count, process):
    deadline = time.monotonic() + 300
    while len(list(out.glob("runs/*/seed-*/run.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_with_equal_results(comparison_recipe, tmp_path):
    path = comparison_recipe(compare={"methods": ["uniform", SHARP], "seeds": 2})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
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

    process = command("--jobs", "2", path=path, out=stopped)
    await_runs(stopped, 1, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(1)
    there = len(contents(stopped))
    process = command(path=path, out=stopped)
    await_runs(stopped, there + 1, process)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "Run the same command to continue: finished runs are kept." in err
    there = len(contents(stopped))
    text = finish(command("--jobs", "2", path=path, out=stopped))
    assert f"{there} finished run" in text
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
def test_a_run_that_fails(comparison_recipe, tmp_path):
    (tmp_path / "failing.py").write_text(
        "def reward(completions, **kwargs):\n"
        "    if kwargs['trainer_state'].global_step == 1:\n"
        "        raise RuntimeError('the reward is broken')\n"
        "    return [0.5] * len(completions)\n"
    )
    path = comparison_recipe(reward_funcs=["failing.reward"], compare={"methods": ["uniform"], "seeds": 1})
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


@pytest.mark.slow
def test_a_tuned_comparison(comparison_recipe, tmp_path):
    path = comparison_recipe(compare={"methods": ["uniform", "gcpo"]})
    words = ("--tune", "learning_rate=1e-9,1e-3", "--tuning_seeds", "1", "--seeds", "1", "--max_steps", "2")
    out = tmp_path / "out"
    text = finish(command(*words, path=path, out=out))
    assert "Tuning of learning_rate on seeds 1000:" in text
    assert "4 runs to make" in text
    assert text.count("Two values of learning_rate cannot show an optimum") == 2  # once chosen, and with the results
    found = json.loads((out / "comparison.json").read_text())
    chosen = {row["label"]: row["values"] for row in found["tuning"]["rows"] if row["chosen"]}
    assert {method["label"]: method["credit"]["settings"] for method in found["methods"]} == chosen
    for name in ("comparison.md", "comparison.html"):
        assert "learning_rate 1e-09" in (out / name).read_text()
    assert all(method["gradient"]["median"] > 0 for method in found["methods"])
    # The same command makes nothing anew
    text = finish(command(*words, path=path, out=out))
    assert "4 finished runs are kept." in text
    assert "to make" not in text
