"""Trains several cases, one after the other, as one of one or several processes: `accelerate launch worker.py JOB.json`.

Completions come from a rollout function that depends on the prompt and its repetition only, so that the same global
batch is made whatever the number of processes.
"""

import functools
import json
import os
import random
import signal
import sys
from collections import defaultdict
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from helpers import (
    config,
    fixed_rollout,
    fixed_turn,
    letter_reward,
    place_reward,
    prompts,
    truncated_rollout,
    vision_rollout,
)
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2VLForConditionalGeneration, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.evaluation import EvalConfig
from trl_credit.recipe.evaluation import TrainingEvaluation


def allow_fsdp_on_cpu():
    """accelerate knows FSDP on accelerators only, though torch shards CPU tensors over gloo just as well."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type is DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


# Rollouts


def environment_rollout(prompts_, trainer):
    """Every third token is an environment's, and a sampler's log-probs come along."""
    rollout = fixed_rollout(prompts_, trainer)
    rollout["env_mask"] = [[int(place % 3 != 1) for place in range(len(row))] for row in rollout["completion_ids"]]
    rollout["logprobs"] = [[-3.0 - 0.1 * (token % 7) for token in row] for row in rollout["completion_ids"]]
    return rollout


def placed_rollout(prompts_, trainer):
    """Completions that depend on the prompt, the place among all processes' completions and the step."""
    tokenizer = trainer._tokenizer
    first = trainer.accelerator.process_index * len(prompts_)
    completions = []
    for place, prompt in enumerate(prompts_, first):
        rng = random.Random(f"{prompt}/{place}/{trainer.state.global_step}")
        tokens = [rng.randrange(3, len(tokenizer)) for _ in range(rng.randint(0, 11))]
        completions.append([*tokens, tokenizer.eos_token_id])
    return {"prompt_ids": tokenizer(prompts_)["input_ids"], "completion_ids": completions, "logprobs": None}


ROLLOUTS = {
    "fixed": fixed_rollout,
    "placed": placed_rollout,
    "truncated": truncated_rollout,
    "environment": environment_rollout,
    "vision": vision_rollout,
    "generate": None,
}


# Rewards


def half_constant_reward(prompts, completions, **kwargs):
    """No variance in the groups of prompts of even length."""
    return [reward if len(str(p)) % 2 else 1.0 for p, reward in zip(prompts, letter_reward(completions), strict=True)]


def second_half_constant_reward(completions, rank, **kwargs):
    """No variance in the groups of the second process."""
    return [1.0 if r else reward for r, reward in zip(rank, letter_reward(completions), strict=True)]


def even_prompt_reward(prompts, completion_ids, **kwargs):
    """No variance in the groups of prompts of even length; elsewhere as the tokens have it."""
    return [1.0 if len(str(p)) % 2 == 0 else sum(ids) % 7 / 7 for p, ids in zip(prompts, completion_ids, strict=True)]


def preempted_reward(completion_ids, trainer_state, **kwargs):
    """The second process is told to end during its third update's rollout."""
    if trainer_state.global_step == 2 and PartialState().process_index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return calm_reward(completion_ids)


def calm_reward(completion_ids, **kwargs):
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def constant_reward(completions, **kwargs):
    return [1.0] * len(completions)


def failing_reward(completions, **kwargs):
    if PartialState().process_index == 1:
        raise RuntimeError("the reward of process 1 is out of order")
    return place_reward(completions)


def turns_reward(completion_ids, **kwargs):
    """A number for each of three turns."""
    return [[sum(ids) % 7 / 7, len(ids) % 3 / 2, sum(ids) % 5 / 5] for ids in completion_ids]


preempted_reward.__name__ = calm_reward.__name__  # its name is in the logs


REWARDS = {
    "letter": letter_reward,
    "half_constant": half_constant_reward,
    "second_half_constant": second_half_constant_reward,
    "constant": constant_reward,
    "failing": failing_reward,
    "even_prompt": even_prompt_reward,
    "preempted": preempted_reward,
    "calm": calm_reward,
    "turns": turns_reward,
}


class Environment:
    def reset(self, **kwargs) -> str:
        return "go"

    def add(self, number: int) -> int:
        """Adds one.

        Args:
            number: The number.

        Returns:
            The number plus one.
        """
        return number + 1


class Recorder:
    """Keeps, for each optimizer step, the method's first (B, T) quantity and the weights, or else
    the token advantages, on each completion's mask."""

    def __init__(self, trainer):
        self.steps = defaultdict(dict)

        def record(batch, result):
            if result.view is None:  # no completion needs credit
                return
            view, mask = result.view, result.inputs.mask
            shares = result.row_advantages if result.weights is None else result.weights
            values = next(iter(trainer.credit_method.metrics(result.inputs).values()), result.inputs.policy_logps)
            for row in range(len(mask)):
                if mask[row].any():
                    ids = [*view["prompt_ids"][row].tolist(), *view["completion_ids"][row][mask[row]].tolist()]
                    key = " ".join(str(i) for i in ids if i)
                    self.steps[trainer.state.global_step][key] = [
                        values[row][mask[row]].tolist(),
                        shares[row][mask[row]].tolist(),
                    ]

        trainer.credit_observers.append(record)

    def gathered(self):
        merged = defaultdict(dict)
        for part in gather_object([self.steps]):
            for step, seen in part.items():
                merged[step].update(seen)
        return merged


def dataset_of(model, rows=16):
    if model == "vision":
        import qwen_vision

        return qwen_vision.make_dataset()
    data = prompts(rows)
    return data.add_column("rank", [row % 2 for row in range(rows)])


def model_and_processor(name, paths, as_object):
    if name == "vision":
        import qwen_vision

        model = Qwen2VLForConditionalGeneration.from_pretrained(paths[name], dtype=torch.float32)
        return model, qwen_vision.tiny_processor()
    if as_object:
        return AutoModelForCausalLM.from_pretrained(paths[name], dtype=torch.float32), None
    return paths[name], None


def without_processor(trainer, save, *args, **kwargs):
    """The tiny vision processor cannot be saved."""
    processor, trainer.processing_class = trainer.processing_class, trainer._tokenizer
    save(*args, **kwargs)
    trainer.processing_class = processor


def evaluate_within(trainer, output):
    """Fifteen samples, which two processes do not share evenly, before, within and after the training."""
    tasks = output / "sums.jsonl"
    if PartialState().is_main_process:
        tasks.write_text("".join(json.dumps({"problem": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(3)))
    PartialState().wait_for_everyone()
    settings = {"plain_prompts": True, "prompt_template": "{problem}", "max_tokens": 12, "batch_size": 7}
    evaluation = TrainingEvaluation(EvalConfig(tasks=[str(tasks)], n=5, top_p=1.0, **settings), every=2)
    evaluation.attach(trainer)

    class AtStart(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 0:
                evaluation.evaluate()

    trainer.add_callback(AtStart())
    return evaluation


def run(settings, paths, output):
    AcceleratorState._reset_state()  # each case is a launch of its own, in processes that have torch loaded
    output.mkdir(parents=True, exist_ok=True)
    settings = dict(settings)
    theirs, peft, name = settings.pop("trl", False), settings.pop("peft", False), settings.pop("model", "tiny")
    rollout, reward = ROLLOUTS[settings.pop("rollout", "fixed")], REWARDS[settings.pop("reward", "letter")]
    as_object, iterable = settings.pop("as_object", False), settings.pop("iterable", False)
    environment, vllm = settings.pop("environment", False), settings.pop("vllm", False)
    continued = settings.pop("continued", False)
    resume, per_process = settings.pop("resume", False), settings.pop("per_process", 1)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    evaluated, frozen = settings.pop("evaluated", False), settings.pop("frozen", False)
    rows, nan_at = settings.pop("rows", 8), settings.pop("nan_at", None)
    credit = settings.get("credit")
    parts = [
        part | {"model": paths[part["model"]]} if isinstance(part, dict) and part.get("model") in paths else part
        for part in (credit if isinstance(credit, list) else [credit])
    ]  # with a teacher's path
    if credit is not None:
        settings["credit"] = parts if isinstance(credit, list) else parts[0]
    settings["per_device_train_batch_size"] = rows // processes // per_process
    args = config(output, kind=GRPOConfig if theirs else CreditGRPOConfig, **settings)
    # after the arguments: under ZeRO-3 with `zero3_init_flag` it is partitioned as it is loaded
    model, processor = model_and_processor(name, paths, as_object)
    if frozen:
        model.requires_grad_(False)
    data: Dataset = dataset_of(name)
    extra = {}
    if environment:
        extra["environment_factory"] = Environment
        processor = AutoTokenizer.from_pretrained(paths[name])
        data = data.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    trainer = (GRPOTrainer if theirs else CreditGRPOTrainer)(
        model=model,
        reward_funcs=reward,
        rollout_func=rollout,
        args=args,
        train_dataset=data.to_iterable_dataset() if iterable else data,
        processing_class=processor,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "up_proj"], lora_dropout=0.0) if peft else None,
        **extra,
    )
    if continued:
        trainer._generate_single_turn = fixed_turn(trainer)
    if vllm:  # as if vLLM had sampled
        trainer.use_vllm = True
        generate = trainer._generate_and_score_completions

        def without_weight_sync(inputs):
            trainer._last_loaded_step = trainer.state.global_step
            return generate(inputs)

        trainer._generate_and_score_completions = without_weight_sync
    if nan_at is not None:  # in the last process only
        compute_loss = trainer._compute_loss

        def nan_loss(model, inputs):
            loss = compute_loss(model, inputs)
            bad = trainer.state.global_step == nan_at and trainer.accelerator.is_last_process
            return loss * float("nan") if bad else loss

        trainer._compute_loss = nan_loss
    recorder = None if theirs else Recorder(trainer)
    if evaluated:
        evaluation = evaluate_within(trainer, output)
    if name == "vision":
        trainer._save = functools.partial(without_processor, trainer, trainer._save)
    if processes == 1:
        trainer.save_model(str(output / "initial"))
    trainer.train(resume if resume == "auto" else str(output.parent / resume) if resume else None)
    if evaluated:
        evaluation.at_end()
    sharded = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in trainer.model.parameters())
    trainer.save_model()
    state = trainer.accelerator.state
    result = {
        "history": trainer.state.log_history,
        "updates": recorder.gathered() if recorder else {},
        "num_processes": state.num_processes,
        "distributed_type": state.distributed_type.value,
        "sharded": sharded,
    }
    if trainer.accelerator.is_main_process:
        (output / "result.json").write_text(json.dumps(result))


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    for name, settings in job["cases"].items():
        output, fails = Path(settings.pop("output_dir", f"{job['output_dir']}/{name}")), settings.pop("fails", False)
        try:
            run(settings, job["models"], output)
        except Exception as error:
            if not fails:
                raise RuntimeError(f"case {name!r} failed") from error
            (output / f"error_{PartialState().process_index}.txt").write_text(f"{type(error).__name__}: {error}")
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()  # else gloo's threads may abort the process as it ends


if __name__ == "__main__":
    main()
