"""A checkpoint that lacks a file, or whose file is not as it was written, is not resumed from."""

import itertools
import json
import logging
import shutil

import pytest
import torch
from helpers import config, letter_reward, prompts
from peft import LoraConfig
from safetensors.torch import save_file
from test_checkpoint import assert_same_run, make, outcome
from torch.distributed import checkpoint as distributed_checkpoint

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
    write_manifest,
)


NEEDED = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "credit_state_0.safetensors",
    "trainer_state.json",
]
FILES = [*NEEDED, "config.json", "tokenizer.json", "training_args.bin", MANIFEST_NAME]


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """In the header or, of JSON, in the beginning."""
    data = bytearray(path.read_bytes())
    data[0] ^= 0xFF
    path.write_bytes(data)


def fill(path):
    """With zeros from the middle on, as a file system may after a crash."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def rename(path):
    """A tensor, or what is the first letter in a header."""
    data = path.read_bytes()
    place = data.index(b"weight" if b"weight" in data else b"step")
    path.write_bytes(data[:place] + b"W" + data[place + 1 :])


DAMAGE = {"deleted": lambda path: path.unlink(), "cut": cut, "empty": empty, "flipped": flip, "zeros": fill}


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
    with pytest.raises(DamagedError, match=rf"{name} is not as it was written .*remove {MANIFEST_NAME}"):
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
    assert "checkpoint-2 is damaged: rng_state.pth is missing: it is left alone" in caplog.text
    check_files(copy / "checkpoint-3")  # written once more


def test_where_none_is_whole(tiny_model, copy):
    for path in copy.glob("checkpoint-*"):
        (path / "scheduler.pt").unlink()
    assert checkpoint_to_resume("auto", str(copy)) is None
    trainer = make(tiny_model, copy, max_steps=3)
    with pytest.raises(ResumeError, match="there is no whole checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match=r"is damaged: scheduler.pt is missing. Use 'auto'"):
        trainer.train(resume_from_checkpoint=str(copy / "checkpoint-3"))


# Of other kinds


def torch_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"a": torch.zeros(3)}, path)


def weights(path):
    save_file({"a": torch.zeros(3)}, path)


def layout(path, kind):
    """The files of a checkpoint on two processes, as they lie."""
    path.mkdir()
    (path / "trainer_state.json").write_text("{}")
    for rank in range(2):
        torch_file(path / f"rng_state_{rank}.pth")
        weights(path / f"credit_state_{rank}.safetensors")
    if kind != "deepspeed":
        torch_file(path / "scheduler.pt")
    if kind in ("ddp", "sharded", "adapter"):
        torch_file(path / "optimizer.pt")
    if kind == "ddp":
        weights(path / "model.safetensors")
    if kind == "adapter":
        weights(path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text("{}")
    if kind == "sharded":
        shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for shard in shards:
            weights(path / shard)
        index = {"weight_map": {"a": shards[0], "b": shards[1]}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    if kind == "deepspeed":
        (path / "latest").write_text("global_step3")
        for rank in range(2):
            for part in ("model", "optim"):
                torch_file(path / "global_step3" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_{part}_states.pt")
    if kind == "fsdp":
        torch_file(path / "pytorch_model_fsdp.bin")
        torch_file(path / "optimizer.bin")
    if kind == "fsdp_sharded":
        for name in ("pytorch_model_fsdp_0", "optimizer_0"):
            distributed_checkpoint.save({"a": torch.arange(1000)}, checkpoint_id=path / name, no_dist=True)
    return path


KINDS = {
    "ddp": [],
    "adapter": ["adapter_model.safetensors"],
    "sharded": ["model-00002-of-00002.safetensors", "model.safetensors.index.json"],
    "deepspeed": ["latest", *(f"global_step3/bf16_zero_pp_rank_{rank}_mp_rank_00_{part}_states.pt"
                              for rank in range(2) for part in ("model", "optim"))],
    "fsdp": ["pytorch_model_fsdp.bin", "optimizer.bin"],
    "fsdp_sharded": ["pytorch_model_fsdp_0/.metadata", "optimizer_0/__0_0.distcp"],
}  # fmt: skip
COMMON = ["rng_state_0.pth", "rng_state_1.pth", "credit_state_0.safetensors", "credit_state_1.safetensors"]


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, own in KINDS.items() for name in own + COMMON])
def test_files_of_other_kinds(kind, name, manifest, tmp_path):
    path = layout(tmp_path / "checkpoint-1", kind)
    if manifest:
        write_manifest(path)
    check_files(path)
    assert not is_model_only(path)
    for damage in (cut, empty, DAMAGE["deleted"]):
        damage(path / name)
        with pytest.raises(DamagedError, match=r"is damaged: "):
            check_files(path)


def test_shards_of_another_node_may_be_on_its_disk(tmp_path):
    """The first node's processes only."""
    path = layout(tmp_path / "checkpoint-1", "ddp")
    for name in ("rng_state_1.pth", "credit_state_1.safetensors"):
        (path / name).unlink()
    check_files(path)


def test_a_checkpoint_of_trl_has_no_state_of_ours(tmp_path):
    path = layout(tmp_path / "checkpoint-1", "ddp")
    for rank in range(2):
        (path / f"credit_state_{rank}.safetensors").unlink()
    check_files(path)


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
    assert "holds the model only (`save_only_model`)" in caplog.text
    assert "a new optimizer" in caplog.text
    assert "Parameters and optimizer are resumed" not in caplog.text
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
    with pytest.raises(ResumeError, match=r"holds the model only \(`save_only_model`\), from which FSDP cannot go on"):
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
