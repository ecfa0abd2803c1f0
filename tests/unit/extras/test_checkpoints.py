"""Checkpoint files."""

import random

import pytest
import torch
from support.checkpoint_files import DAMAGE, cut, empty, layout
from support.resumed import checkpoint

from trl_credit.extras.checkpoints import (
    DamagedError,
    check_files,
    is_model_only,
    last_complete_checkpoint,
    load_tree,
    save_tree,
    write_manifest,
)


# Trees


def test_trees(tmp_path):
    tree = {
        "a": [torch.arange(6).view(2, 3).T, None, True, 1.5, "text", float("nan")],
        "b": {"c": torch.tensor(3), "d": torch.zeros(2, 0, dtype=torch.bool), "e": []},
        "tensor": {"dict": torch.tensor([0.1], dtype=torch.bfloat16)},
        "": 0,
    }
    shared = torch.randn(4, 4)
    tree["views"] = [shared[:2], shared[1:]]
    save_tree(tmp_path / "tree.safetensors", tree)
    loaded = load_tree(tmp_path / "tree.safetensors")

    def check(a, b):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        elif isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                check(a[key], b[key])
        elif isinstance(a, list):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                check(x, y)
        else:
            assert a == b or (a != a and b != b)

    check(loaded, tree)
    assert [path.name for path in tmp_path.iterdir()] == ["tree.safetensors"]


def test_no_pickle(tmp_path):
    with pytest.raises(TypeError, match="/a/1 is a Random, which has no safe format"):
        save_tree(tmp_path / "tree.safetensors", {"a": [0, random.Random()]})
    assert not list(tmp_path.iterdir())


def test_the_last_whole_checkpoint(tmp_path, caplog):
    assert last_complete_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-99").touch()
    checkpoint(tmp_path, 11, state=None)
    checkpoint(tmp_path, 12, state='{"epoch": 0.')
    (checkpoint(tmp_path, 13) / "checkpoint-is-incomplete.txt").touch()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-10"
    assert all(f"checkpoint-{step} is incomplete" in caplog.text for step in (11, 12, 13))


# Of other kinds


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
        write_manifest(path, 1)
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
