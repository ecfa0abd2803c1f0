"""An image-token model on two gloo processes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, TESTS
from safetensors.torch import load_file
from support.image_tokens import save_tiny_janus


pytestmark = pytest.mark.slow

LOGGED = ("loss", "grad_norm", "reward", "entropy", "credit/contrast", "credit/weight_max", "completions/clipped_ratio")


def start(path, output, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{TESTS}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    command += ["-m", "support.image_tokens", path, str(output), str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    log = [row for row in json.loads((output / "state.json").read_text())["log_history"] if "loss" in row]
    return log, load_file(output / "model.safetensors")


def test_one_process_and_two_train_the_same(tmp_path):
    path = save_tiny_janus(tmp_path / "janus")
    before = load_file(f"{path}/model.safetensors")
    (one, alone), (two, together) = (start(path, tmp_path / str(count), count) for count in (1, 2))
    assert len(one) == len(two) == 3
    for row, other in zip(one, two, strict=True):
        for name in LOGGED:
            if name in row and row[name] is not None:
                assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), name
    moved = 0.0
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6)
        moved = max(moved, (value - before[name]).abs().max().item())
    assert moved > 1e-4
