"""Real runs on two gloo processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file


pytestmark = pytest.mark.slow

TIMES = ("step_time", "runtime", "per_second", "total_flos")
CREDIT = {
    "uniform": "uniform",
    "gcpo": {"method": "gcpo", "negative_prompt": "wrong! {prompt}"},
    "dgpo": {"method": "dgpo", "temperature": 0.002},
}
BACKENDS = {
    "single": {},
    "ddp": {},
    "zero3": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 3, "zero3_init_flag": False, "zero3_save_16bit_model": True},
    },
    "zero3_init": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 3, "zero3_init_flag": True, "zero3_save_16bit_model": True},
    },
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
    "zero3": "DEEPSPEED",
    "zero3_init": "DEEPSPEED",
    "fsdp2": "FSDP",
}


def launch(backend, tmp_path, model, **settings):
    """Runs tests/worker.py; returns the logged history and the saved parameters."""
    tmp_path.mkdir()
    processes = 1 if backend == "single" else 2
    settings = {"model": model, "output_dir": str(tmp_path), "per_device_train_batch_size": 8 // processes, **settings}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = []
    if backend == "ddp":  # accelerate starts several CPU processes through MPI only
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    elif BACKENDS[backend]:
        accelerate = {"num_machines": 1, "num_processes": 2, "mixed_precision": "no", "use_cpu": True}
        (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(accelerate | BACKENDS[backend]))
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "accelerate.yaml")]
        launcher += ["--main_process_port", port]
    environment = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, *launcher, str(here / "worker.py"), str(tmp_path / "settings.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["num_processes"], result["distributed_type"]) == (processes, DISTRIBUTED_TYPE[backend])
    assert result["sharded"] == (backend not in ("single", "ddp"))
    name = "adapter_model.safetensors" if settings.get("peft") else "model.safetensors"
    return result["history"], load_file(tmp_path / name)


def without_times(history):
    return [{k: v for k, v in entry.items() if not any(t in k for t in TIMES)} for entry in history]


def assert_close(ours, theirs):
    (our_history, our_parameters), (their_history, their_parameters) = ours, theirs
    assert len(our_history) == len(their_history)
    for a, b in zip(without_times(our_history), without_times(their_history), strict=True):
        for key in b:
            if key.startswith(("credit/", "reward", "completions/", "entropy")) or key in ("loss", "grad_norm"):
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=2e-5), key
    for name, parameter in their_parameters.items():
        torch.testing.assert_close(our_parameters[name], parameter, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: n + m)


# SGD: Adam's first steps turn rounding noise in near-zero gradients into full-size steps
SGD = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "num_iterations": 2, "loss_type": "dapo"}


@pytest.fixture(scope="module")
def single(tiny_model, tmp_path_factory):
    """The single process's result for some settings, made once."""
    results = {}

    def run(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in results:
            results[key] = launch("single", tmp_path_factory.mktemp("single") / "run", tiny_model, **settings)
        return results[key]

    return run


@pytest.mark.parametrize("case", [{}, {"beta": 0.1, "peft": True}])
def test_uniform_is_trl_bit_for_bit_on_two_processes(case, tiny_model, tmp_path):
    settings = {**case, "generate": True, "gradient_accumulation_steps": 2, "num_iterations": 2, "loss_type": "grpo"}
    theirs = launch("ddp", tmp_path / "trl", tiny_model, trl=True, **settings)
    ours = launch("ddp", tmp_path / "ours", tiny_model, **settings)
    ours_history = [{k: v for k, v in e.items() if "credit/" not in k} for e in without_times(ours[0])]
    assert ours_history == without_times(theirs[0])
    assert all(torch.equal(ours[1][name], parameter) for name, parameter in theirs[1].items())


@pytest.mark.parametrize("name", CREDIT)
def test_two_processes_are_one(name, single, tiny_model, tmp_path):
    settings = {"credit": CREDIT[name], **SGD}
    expected = single(**settings)
    if name != "uniform":
        assert max(entry.get("credit/weight_std", 0) for entry in expected[0]) > 0.05
    assert_close(launch("ddp", tmp_path / "run", tiny_model, **settings), expected)


@pytest.mark.parametrize("name", ["gcpo", "dgpo"])
@pytest.mark.parametrize("backend", ["zero3", "fsdp2"])
def test_sharded_is_one_process(backend, name, single, tiny_model, tmp_path):
    settings = {"credit": CREDIT[name], **SGD}
    assert_close(launch(backend, tmp_path / "run", tiny_model, **settings), single(**settings))


def test_zero3_with_lora_and_gradient_checkpointing(single, tiny_model, tmp_path):
    settings = {"credit": CREDIT["dgpo"], **SGD, "peft": True}
    sharded = launch("zero3", tmp_path / "run", tiny_model, **settings, gradient_checkpointing=True)
    assert_close(sharded, single(**settings))


@pytest.mark.parametrize("as_object", [False, True])
def test_zero3_partitioned_as_it_is_loaded(as_object, single, tiny_model, tmp_path):
    """The reference is whole also when the policy, a path or an object, never was on any one process."""
    settings = {"credit": CREDIT["dgpo"], **SGD}
    run = launch("zero3_init", tmp_path / "run", tiny_model, **settings, as_object=as_object)
    assert_close(run, single(**settings))
