"""Trains image models in several cases, as one of one or several processes: `accelerate launch SCRIPT JOB.json`.

An image depends on its prompt, its place among all processes' images and the update only, so that the same global batch is
made whatever the number of processes.
"""

import json
import os
import sys
import zlib
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from helpers import config
from peft import LoraConfig
from support.pipelines import PIPELINES, SETTINGS, TARGETS
from worker import allow_fsdp_on_cpu

from trl_credit import DiffusionGRPOConfig, DiffusionGRPOTrainer
from trl_credit._util.unsharded import unsharded
from trl_credit.samplers.pipelines import PipelineSampler


class PlacedSampler(PipelineSampler):
    """Samples each image from a seed of its own."""

    trainer: DiffusionGRPOTrainer

    def sample(self, prompts, model, rows=None):
        first = self.trainer.accelerator.process_index * len(prompts)
        trajectories, images = [], []
        for place, prompt in enumerate(prompts, first):
            torch.manual_seed(zlib.crc32(f"{prompt}/{place}/{self.trainer.state.global_step}".encode()))
            one = super().sample([prompt], model)
            trajectories += one[0]
            images += one[1]
        return trajectories, images


def darkness(images, **_):
    return [1 - sum(image.convert("L").tobytes()) / (255 * image.width * image.height) for image in images]


def half_constant(images, prompts, **_):
    """No variance in the groups of one of the prompts."""
    return [0.5 if "fox" in prompt else value for prompt, value in zip(prompts, darkness(images), strict=True)]


def run(settings, output):
    AcceleratorState._reset_state()  # each case is a launch of its own, in processes that have torch loaded
    output.mkdir(parents=True, exist_ok=True)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    name, peft, resume = settings.pop("pipeline", "sd15"), settings.pop("peft", False), settings.pop("resume", None)
    by_path = settings.pop("by_path", False)
    reward = half_constant if settings.pop("half_constant", False) else darkness
    args = config(
        output, kind=DiffusionGRPOConfig, max_completion_length=None, per_device_train_batch_size=8 // processes,
        **(SETTINGS[name] | settings),
    )  # fmt: skip
    torch.manual_seed(0)
    source = output / "source" / os.environ.get("RANK", "0")  # each process writes a vocabulary
    with unsharded():
        pipeline = PIPELINES[name](source)
        if by_path:  # which the main process alone saves
            pipeline.save_pretrained(output / "pipeline")
            PartialState().wait_for_everyone()
            pipeline = str(output / "pipeline")
    trainer = DiffusionGRPOTrainer(
        pipeline,
        reward,
        args,
        Dataset.from_dict({"prompt": ["a red fox", "blue boat"] * 8}),
        peft_config=LoraConfig(r=4, target_modules=TARGETS) if peft else None,
    )
    trainer.sampler.__class__ = PlacedSampler
    trainer.sampler.trainer = trainer
    trainer.train(str(output.parent / resume) if resume else None)
    trainer.save_model()
    state = trainer.accelerator.state
    if trainer.accelerator.is_main_process:
        result = {
            "history": trainer.state.log_history,
            "num_processes": state.num_processes,
            "distributed_type": state.distributed_type.value,
        }
        (output / "result.json").write_text(json.dumps(result))


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    for name, settings in job["cases"].items():
        try:
            run(settings, Path(job["output_dir"]) / name)
        except Exception as error:
            raise RuntimeError(f"case {name!r} failed") from error
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()  # else gloo's threads may abort the process as it ends


if __name__ == "__main__":
    main()
