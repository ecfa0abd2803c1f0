"""Ways to damage a file, and the contents of a checkpoint."""

import json

import torch
from safetensors.torch import save_file
from torch.distributed import checkpoint as distributed_checkpoint


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


DAMAGE = {"deleted": lambda path: path.unlink(), "cut": cut, "empty": empty, "flipped": flip, "zeros": fill}


def weights(path):
    save_file({"a": torch.zeros(3)}, path)


def torch_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"a": torch.zeros(3)}, path)


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
