"""Small recipes and made-up runs for comparisons."""

import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from helpers import ROOT

from trl_credit.comparison.plan import (
    Method,
    Plan,
)


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
def comparison_recipe(tmp_path):
    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(RECIPE | changes))
        return path

    return write


def fork(target, *args, forks=True):
    """Stands for `start_process`, so that a test's own functions run."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


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
