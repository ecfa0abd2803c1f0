"""Image models on two gloo processes: the same result whatever the launcher, saved as diffusers loads it."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from support.launch import assert_histories_close, start
from support.pipelines import PIPELINES


SGD = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 3, "num_iterations": 2, "credit": "pcpo"}
CASES = {
    "whole": {},
    "lora": {"peft": True, "pipeline": "sd3", "learning_rate": 10.0, "by_path": True},
    "kl": {"peft": True, "beta": 0.1},
    "flux": {"pipeline": "flux", "half_constant": True, "gradient_checkpointing": True},
    # one process has no image with an advantage, and others need several forwards
    "chunked": {
        "pipeline": "sd3",
        "half_constant": True,
        "denoiser_batch_size": 5,
        "peft": True,
        "beta": 0.1,
        "learning_rate": 10.0,
    },
    "chunked_skips": {"pipeline": "sd3", "half_constant": True, "denoiser_batch_size": 5},
    "dynamic": {"dynamic_sampling": True, "half_constant": True},
    "saved": {"save_strategy": "steps", "save_steps": 1, "optim_args": "momentum=0.5"},
    "resumed": {"resume": "saved/checkpoint-1", "optim_args": "momentum=0.5"},
}
# DDP and FSDP2 run them all; DeepSpeed's stages those whose way there is another
OF_DEEPSPEED = {"zero2": ("whole", "kl", "saved", "resumed"), "zero3_init": ("lora", "saved", "resumed")}
PAIRS = [
    (case, backend) for backend in ("ddp", "zero2", "zero3_init", "fsdp2") for case in OF_DEEPSPEED.get(backend, CASES)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found, path = {}, tmp_path_factory.mktemp("images")

    def launch(backend):
        if backend not in found:
            cases = {name: SGD | CASES[name] for name in OF_DEEPSPEED.get(backend, CASES)}
            done = found[backend] = start(backend, path / backend, {}, cases, "diffusion_worker.py")
            if done.returncode == 0:
                found[backend] = {
                    name: json.loads((path / backend / name / "result.json").read_text()) for name in cases
                }
        results = found[backend]
        assert isinstance(results, dict), results.stdout[-2000:] + results.stderr[-6000:]
        return results, path / backend

    return launch


def weights(folder, peft):
    if peft:
        return load_file(folder / "pytorch_lora_weights.safetensors")
    (component,) = [name for name in ("unet", "transformer") if (folder / name).exists()]
    (file,) = (folder / component).glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(("case", "backend"), PAIRS)
def test_two_processes_are_one(case, backend, runs):
    (single, single_path), (ours, path) = runs("single"), runs(backend)
    assert ours[case]["num_processes"] == 2
    assert_histories_close(ours[case]["history"], single[case]["history"])
    peft = CASES[case].get("peft", False)
    expected, found = weights(single_path / case, peft), weights(path / case, peft)
    assert found.keys() == expected.keys()
    pipeline = PIPELINES[CASES[case].get("pipeline", "sd15")](path / "start")
    initial = (pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer).state_dict()
    difference = change = 0.0
    for name, value in expected.items():
        if not peft or "lora_B" in name:  # an adapter's B starts at zero
            change += (value - (0 if peft else initial[name])).double().square().sum().item()
        difference += (found[name] - value).double().square().sum().item()
    assert change > 1e-6
    assert difference**0.5 < 2e-3 * change**0.5


@pytest.mark.parametrize("backend", ["single", "ddp", "zero2", "zero3_init", "fsdp2"])
def test_a_resumed_run_is_the_uninterrupted_one(backend, runs):
    _, path = runs(backend)
    expected, found = weights(path / "saved", False), weights(path / "resumed", False)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_a_sharded_run_saves_is_a_pipeline(runs):
    _, path = runs("fsdp2")
    pipeline = DiffusionPipeline.from_pretrained(path / "whole")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a red fox", num_inference_steps=2, height=16, width=16, output_type="pt").images
    assert torch.isfinite(images).all()
