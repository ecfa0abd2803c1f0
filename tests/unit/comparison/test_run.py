"""Inputs and outputs of one run in a comparison."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.comparison import fork, make_run
from transformers import TrainerState

from trl_credit.comparison import output, plan, worker
from trl_credit.comparison.plan import (
    make_plan,
    run_folder,
)
from trl_credit.comparison.run import prepare, run_all, start_process


def test_what_a_run_is_told(comparison_recipe, tmp_path):
    out = tmp_path / "out"
    found = make_plan(comparison_recipe(), out, methods=["uniform", "gcpo"], seeds=2, overrides=["--max_steps", "4"])
    spec = prepare(found, out, found.method("gcpo"), 1, jobs=2, keep_models=False)
    given = dict(zip(spec["arguments"][::2], spec["arguments"][1::2], strict=True))
    assert json.loads(given["--credit"])["method"] == "gcpo"
    assert (given["--seed"], given["--max_steps"], given["--logging_steps"]) == ("1", "4", "1")
    assert given["--output_dir"] == str(out / "runs" / "gcpo" / "seed-1")
    assert "--resume_from_checkpoint" not in given
    assert spec["one_thread"]


def test_an_unfinished_run_leaves_nothing_but_whole_checkpoints(comparison_recipe, tmp_path):
    out = tmp_path / "out"
    found = make_plan(comparison_recipe(), out, methods=["uniform"], seeds=1)
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


class Context:
    """A multiprocessing context that writes down what it starts."""

    def __init__(self, kind, started, error=None):
        self.kind, self.started, self.error = kind, started, error

    def set_forkserver_preload(self, modules):
        pass

    def Process(self, target, args):  # noqa: N802
        return self

    def start(self):
        if self.error:
            raise self.error
        self.started.append(self.kind)


@pytest.mark.parametrize(
    ("platform", "forks", "error", "kind"),
    [
        ("linux", True, None, "forkserver"),
        ("linux", False, None, "spawn"),  # on a GPU
        ("darwin", True, None, "spawn"),
        ("linux", True, OSError("AF_UNIX path too long"), "spawn"),
    ],
)
def test_how_processes_start(platform, forks, error, kind, monkeypatch):
    started = []
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(
        "multiprocessing.get_context", lambda kind: Context(kind, started, error if kind == "forkserver" else None)
    )
    start_process(print, "x", forks=forks)
    assert started == [kind]


def test_a_failed_run_is_reported_and_the_others_go_on(comparison_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_credit.comparison.run.start", fake_start)
    monkeypatch.setattr("trl_credit.comparison.run.start_process", fork)
    out, lines = tmp_path / "out", []
    out.mkdir()
    found = make_plan(comparison_recipe(), out, methods=["uniform", "gcpo"], seeds=3)
    plan.write_plan(out, found)
    assert run_all(found, out, jobs=2, say=lines.append) == [("gcpo", 1)]
    assert lines[0] == "6 runs to make, 2 at a time."
    assert sum("reward 0.500 in the last quarter, accuracy 25.0 %" in line for line in lines) == 2
    assert any("gcpo, seed 1: failed with exit status 3" in line and "what was wrong" in line for line in lines)
    assert any("left" in line for line in lines)
    lines.clear()
    assert run_all(found, out, say=lines.append) == [("gcpo", 1)]
    assert lines[0] == "5 finished runs are kept."
    summary = output.write_results(out)
    assert "gcpo: no finished run of seed 1; its statistics are those of the others." in summary["notes"]
    (row,) = [row for row in summary["differences"] if row["quantity"] == "accuracy"]
    assert row["seeds"] == [0, 2]
    for name in ("comparison.json", "comparison.md", "comparison.html", "curves.png", "curves.svg"):
        assert (out / name).stat().st_size > 500


def test_models_are_removed(tmp_path):
    for name in ("run.json", "log.txt", "model.safetensors", "config.json", "training_args.bin"):
        (tmp_path / name).write_text("x")
    for name in ("eval", "checkpoint-3"):
        (tmp_path / name).mkdir()
    worker.remove_models(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "log.txt", "run.json"]
