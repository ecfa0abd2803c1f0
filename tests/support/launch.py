"""Launches scripts of tests/ on one or two processes, and compares what they logged."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from helpers import ROOT, TESTS, free_port


LOGGED = (
    "credit/", "reward", "completions/", "entropy", "loss", "grad_norm", "clip_ratio/", "cispo_clip_ratio", "kl", "vespo/",
)  # fmt: skip

TIMES = ("step_time", "runtime", "per_second", "_seconds", "total_flos")


def deepspeed(stage, **settings):
    return {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": stage, "zero3_init_flag": False, **settings},
    }


BACKENDS = {
    "single": {},
    "ddp": {},
    "zero2": deepspeed(2),
    "zero3": deepspeed(3, zero3_save_16bit_model=True),
    "zero3_init": deepspeed(3, zero3_save_16bit_model=True, zero3_init_flag=True),
    "fsdp2": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        },
    },
}

DISTRIBUTED_TYPE = {
    "single": "NO",
    "ddp": "MULTI_CPU",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "zero3_init": "DEEPSPEED",
    "fsdp2": "FSDP",
}


def start(backend, path, models, cases, script="worker.py"):
    """Runs a script of tests/ to its end; returns the finished process."""
    path.mkdir()
    (path / "job.json").write_text(json.dumps({"models": models, "cases": cases, "output_dir": str(path)}))
    port = str(free_port())
    launcher = []
    if backend == "ddp":  # accelerate starts several CPU processes through MPI only
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    elif BACKENDS[backend]:
        accelerate = {"num_machines": 1, "num_processes": 2, "mixed_precision": "no", "use_cpu": True}
        (path / "accelerate.yaml").write_text(yaml.safe_dump(accelerate | BACKENDS[backend]))
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(path / "accelerate.yaml")]
        launcher += ["--main_process_port", port]
    environment = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, *launcher, str(TESTS / script), str(path / "job.json")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


def without_times(history):
    return [{k: v for k, v in entry.items() if not any(t in k for t in TIMES)} for entry in history]


def assert_histories_close(ours, theirs, micro_batches=1):
    # Of each micro-batch, and with several a process deals its own rows to them
    composed = (
        "credit/weight_std", "credit/weight_max", "credit/effective_fraction", "clip_ratio/low_min", "clip_ratio/high_max",
    ) if micro_batches > 1 else ()  # fmt: skip
    assert len(ours) == len(theirs)
    for a, b in zip(without_times(ours), without_times(theirs), strict=True):
        for key in b:
            if key in composed:
                continue
            if b[key] is None:  # a mean over no tokens
                assert a[key] is None, key
            elif key.startswith(LOGGED):
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=2e-5), key
