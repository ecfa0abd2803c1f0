"""Trains once, as one of one or several processes: `accelerate launch worker.py SETTINGS.json`.

Completions come from a rollout function that depends on the prompt and its repetition only, so that the same global
batch is made whatever the number of processes.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from helpers import config, letter_reward, prompts
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer


def allow_fsdp_on_cpu():
    """accelerate knows FSDP on accelerators only, though torch shards CPU tensors over gloo just as well."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type is DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def fixed_rollout(prompts_, trainer):
    tokenizer, seen = trainer.processing_class, Counter()
    ids, completions = [], []
    for prompt in prompts_:
        rng = random.Random(f"{prompt}/{seen[prompt]}/{trainer.state.global_step}")
        seen[prompt] += 1
        length = rng.randint(1, 12)
        ids.append(tokenizer(prompt)["input_ids"])
        completions.append([rng.randrange(3, len(tokenizer)) for _ in range(length - 1)] + [tokenizer.eos_token_id])
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


def main():
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    theirs = settings.pop("trl", False)
    peft, output = settings.pop("peft", False), Path(settings.pop("output_dir"))
    path, as_object = settings.pop("model"), settings.pop("as_object", False)
    rollout = None if settings.pop("generate", False) else fixed_rollout
    args = config(output, kind=GRPOConfig if theirs else CreditGRPOConfig, **settings)
    # after the arguments: under ZeRO-3 with `zero3_init_flag` it is partitioned as it is loaded
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) if as_object else path
    trainer = (GRPOTrainer if theirs else CreditGRPOTrainer)(
        model=model,
        reward_funcs=letter_reward,
        rollout_func=rollout,
        args=args,
        train_dataset=prompts(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "up_proj"], lora_dropout=0.0) if peft else None,
    )
    trainer.train()
    sharded = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in trainer.model.parameters())
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        state = trainer.accelerator.state
        launched = {"num_processes": state.num_processes, "distributed_type": state.distributed_type.value}
        launched["sharded"] = sharded
        (output / "result.json").write_text(json.dumps({"history": trainer.state.log_history, **launched}))


if __name__ == "__main__":
    main()
