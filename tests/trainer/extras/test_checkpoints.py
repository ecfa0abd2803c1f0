"""Damaged and half-written checkpoints of real runs."""

import itertools
import json
import logging
import os
import shutil
import signal

import pytest
from helpers import config, letter_reward, prompts
from peft import LoraConfig
from support.checkpoint_files import DAMAGE, cut
from support.resumed import assert_same_run, make, outcome
from support.stopped import STOPPED, start

from trl_credit import CreditGRPOTrainer
from trl_credit.extras import checkpoints as checkpoint_files
from trl_credit.extras.checkpoints import (
    MANIFEST_NAME,
    DamagedError,
    ResumeError,
    check_files,
    checkpoint_to_resume,
    is_model_only,
    last_complete_checkpoint,
)


# Where a process is killed while it writes the checkpoint of its fourth update
PLACES = ("model", "optimizer", "rng", "state", "rotation")


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", [pytest.param(p, marks=pytest.mark.nightly if p in ("optimizer", "rng") else ()) for p in PLACES]
)
def test_killed_while_writing(place, tiny_model, tmp_path):
    whole = make(tiny_model, tmp_path / "whole", **STOPPED)
    whole.train()
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", run / "checkpoint-4")  # of an earlier run, and whole
    os.utime(run / "checkpoint-4", (0, 0))
    done = start("killed", run, tiny_model, place)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    found = last_complete_checkpoint(run)
    assert found.name == ("checkpoint-4" if place == "rotation" else "checkpoint-2")
    resumed = make(tiny_model, run, **STOPPED)
    resumed.train(resume_from_checkpoint="auto")
    assert_same_run(outcome(resumed), outcome(whole), place)


NEEDED = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "credit_state_0.safetensors",
    "trainer_state.json",
]

FILES = [*NEEDED, "config.json", "tokenizer.json", "training_args.bin", MANIFEST_NAME]


def rename(path):
    """A tensor, or what is the first letter in a header."""
    data = path.read_bytes()
    place = data.index(b"weight" if b"weight" in data else b"step")
    path.write_bytes(data[:place] + b"W" + data[place + 1 :])


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A run of three updates with a checkpoint of each."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    trainer = make(tiny_model, path, max_steps=3)
    trainer.train()
    return path, outcome(trainer)


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    return tmp_path / "run"


def without_manifest(run):
    """As an older release left it."""
    for path in run.glob(f"checkpoint-*/{MANIFEST_NAME}"):
        path.unlink()


def test_what_is_written_is_whole(run):
    assert [path.name for path in sorted(run[0].glob("checkpoint-*"))] == [f"checkpoint-{i}" for i in (1, 2, 3)]
    for path in run[0].glob("checkpoint-*"):
        check_files(path)
        recorded = json.loads((path / MANIFEST_NAME).read_text())["files"]
        assert recorded.keys() == {p.name for p in path.iterdir()} - {MANIFEST_NAME}
        assert set(FILES) - {MANIFEST_NAME} <= recorded.keys()


@pytest.mark.parametrize(("name", "damage"), itertools.product(FILES, DAMAGE))
def test_any_damage(name, damage, copy, caplog):
    """The one before is taken, and an explicit path refused, by the file's name."""
    newest = copy / "checkpoint-3"
    DAMAGE[damage](newest / name)
    if name == MANIFEST_NAME and damage == "deleted":  # as an older release left it
        assert last_complete_checkpoint(copy) == newest
        return
    assert last_complete_checkpoint(copy) == copy / "checkpoint-2"
    assert "checkpoint-3" in caplog.text
    assert name in caplog.text
    with pytest.raises(ResumeError, match=rf"`resume_from_checkpoint`: '.*checkpoint-3' .*{name}.* Use 'auto'"):
        checkpoint_to_resume(str(newest), str(copy))


# Without a manifest: TRL's have no state of ours, and tensors may be zero
STRUCTURAL = [
    (name, damage)
    for name, damage in itertools.product(NEEDED, DAMAGE)
    if not (name.startswith("credit_state") and damage == "deleted")
    and not (name.endswith(".safetensors") and damage == "zeros")
]


@pytest.mark.parametrize(("name", "damage"), STRUCTURAL)
def test_any_damage_without_a_manifest(name, damage, copy):
    without_manifest(copy)
    check_files(copy / "checkpoint-3")
    DAMAGE[damage](copy / "checkpoint-3" / name)
    assert last_complete_checkpoint(copy) == copy / "checkpoint-2"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_changed_header_of_the_same_length(name, copy):
    rename(copy / "checkpoint-3" / name)
    with pytest.raises(DamagedError, match=rf"{name} has changed since it was written .*remove {MANIFEST_NAME}"):
        check_files(copy / "checkpoint-3")


def test_the_model_card_may_be_edited(copy):
    (copy / "checkpoint-3" / "README.md").write_text("mine")
    (copy / "checkpoint-3" / "notes.json").write_text("mine")
    check_files(copy / "checkpoint-3")


def test_auto_goes_on_from_the_last_whole_one(tiny_model, run, copy, caplog):
    cut(copy / "checkpoint-3" / "optimizer.pt")
    (copy / "checkpoint-2" / "rng_state.pth").unlink()
    resumed = make(tiny_model, copy, max_steps=3)
    resumed.train(resume_from_checkpoint="auto")
    assert_same_run(outcome(resumed), run[1])
    assert "checkpoint-3 is damaged: optimizer.pt has" in caplog.text
    assert "checkpoint-2 is damaged: rng_state.pth is missing: skipping it" in caplog.text
    check_files(copy / "checkpoint-3")  # written once more


def test_where_none_is_whole(tiny_model, copy):
    for path in copy.glob("checkpoint-*"):
        (path / "scheduler.pt").unlink()
    assert checkpoint_to_resume("auto", str(copy)) is None
    trainer = make(tiny_model, copy, max_steps=3)
    with pytest.raises(ResumeError, match="there is no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match=r"is damaged: scheduler.pt is missing. Use 'auto'"):
        trainer.train(resume_from_checkpoint=str(copy / "checkpoint-3"))


# The model only


def test_a_checkpoint_with_the_model_only(tiny_model, tmp_path, caplog):
    """It goes on where it was, says what it does not have, and keeps the schedule."""
    settings = {"max_steps": 6, "save_steps": 2, "save_only_model": True, "lr_scheduler_type": "linear"}
    whole = make(tiny_model, tmp_path / "whole", **settings)
    whole.train()
    rates = [entry["learning_rate"] for entry in whole.state.log_history[:-1]]
    path = tmp_path / "whole" / "checkpoint-4"
    assert is_model_only(path)
    shutil.copytree(path, tmp_path / "run" / "checkpoint-4")
    resumed = make(tiny_model, tmp_path / "run", **settings)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint="auto")
    assert "holds only the model (`save_only_model`)" in caplog.text
    assert "a new optimizer" in caplog.text
    assert "Parameters and optimizer are restored" not in caplog.text
    assert resumed._initial_global_step == 4
    entries = [entry for entry in resumed.state.log_history if "learning_rate" in entry]
    assert [entry["learning_rate"] for entry in entries] == rates
    assert rates[-1] < rates[0] / 3


def test_the_model_only_of_an_adapter(tiny_model, tmp_path):
    make(tiny_model, tmp_path, peft=True, max_steps=2, save_only_model=True).train()
    check_files(tmp_path / "checkpoint-2")
    assert is_model_only(tmp_path / "checkpoint-2")


def test_where_the_model_only_is_not_enough(tiny_model, tmp_path, monkeypatch):
    make(tiny_model, tmp_path, max_steps=2, save_only_model=True).train()
    trainer = make(tiny_model, tmp_path, max_steps=3)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ResumeError, match=r"holds only the model \(`save_only_model`\), which FSDP cannot resume"):
        trainer.train(resume_from_checkpoint="auto")


def test_a_lora_checkpoint(tiny_model, tmp_path):
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, max_steps=1, save_strategy="steps", save_steps=1),
        train_dataset=prompts(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]),
    )
    trainer.train()
    check_files(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / MANIFEST_NAME).unlink()
    check_files(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "adapter_model.safetensors").unlink()
    with pytest.raises(DamagedError, match="weights"):
        check_files(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RecursionError(), ValueError("no UTF-8")])
def test_whatever_keeps_a_file_from_being_read(error, copy, monkeypatch, caplog):
    """An older checkpoint is there; and other processes wait for what the main one says."""
    real = checkpoint_files._check_needed

    def check(checkpoint):
        if checkpoint.name == "checkpoint-3":
            raise error
        real(checkpoint)

    monkeypatch.setattr(checkpoint_files, "_check_needed", check)
    assert last_complete_checkpoint(copy).name == "checkpoint-2"
    assert "checkpoint-3 cannot be read" in caplog.text
