"""An image-token model on two gloo processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from helpers import ROOT, TESTS, free_port
from support.image_tokens import save_tiny_janus
from transformers import JanusForConditionalGeneration


pytestmark = pytest.mark.slow

LOGGED = (
    "loss",
    "grad_norm",
    "reward",
    "entropy",
    "credit/contrast",
    "credit/weight_max",
    "kl",
    "completions/clipped_ratio",
)


ZERO3 = {
    "num_machines": 1,
    "num_processes": 2,
    "mixed_precision": "no",
    "use_cpu": True,
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {"zero_stage": 3, "zero3_init_flag": False, "zero3_save_16bit_model": True},
}


def start(path, output, backend):
    port = free_port()
    launcher, processes = [], 2
    if backend == "single":
        processes = 1
    elif backend == "ddp":
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    else:
        config = output.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(ZERO3))
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--main_process_port", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = f"{TESTS}{os.pathsep}{ROOT}"
    command = [sys.executable, *launcher, "-m", "support.image_tokens", path, str(output), str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    log = [row for row in json.loads((output / "state.json").read_text())["log_history"] if "loss" in row]
    # Under ZeRO-3, transformers writes other names, which it knows when it loads
    return log, JanusForConditionalGeneration.from_pretrained(output).state_dict()


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    path = save_tiny_janus(folder / "janus")
    return path, *start(path, folder / "out", "single")


@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_two_processes_train_as_one(backend, single, tmp_path):
    path, one, alone = single
    two, together = start(path, tmp_path / "out", backend)
    assert len(one) == len(two) == 3
    assert one[-1]["kl"] > 1e-6
    for row, other in zip(one, two, strict=True):
        for name in LOGGED:
            if row.get(name) is not None:
                assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), name
    before, moved = JanusForConditionalGeneration.from_pretrained(path).state_dict(), 0.0
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6)
        moved = max(moved, (value - before[name]).abs().max().item())
    assert moved > 1e-4
