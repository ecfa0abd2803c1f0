"""Small models and trainers for the tests."""

import random
import socket
from collections import Counter
from pathlib import Path

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from trl_credit import CreditGRPOConfig
from trl_credit.toy.build_model import build_tokenizer


TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':' + message['content'] + ';' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if loud %}!{% endif %}{% endif %}"
)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def save_tiny_model(path, *, seed=0, tie=True, context=256, scale=8.0, **config) -> str:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            tie_word_embeddings=tie,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    )
    with torch.no_grad():  # sharper than random initialisation: uneven distributions make stricter tests
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale if parameter.shape[0] == len(tokenizer) else 3.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def save_tiny_moe(path) -> str:
    """A mixture of four experts, of which each token takes two."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            moe_intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def prompts(n: int = 16, seed: int = 0) -> Dataset:
    """Plain prompts of uneven lengths, with a column that a reward can read."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        text = "".join(rng.choice("abcdef0123456789+") for _ in range(rng.randint(3, 12)))
        rows.append({"prompt": text + "=", "answer": str(rng.randint(0, 99))})
    return Dataset.from_list(rows)


def letter_reward(completions, **kwargs) -> list[float]:
    """A dense reward that differs between completions: the share of letters."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(ch.isalpha() for ch in text) / max(len(text), 1) for text in texts]


def place_reward(completions, **kwargs) -> list[float]:
    """Each completion's place in the batch: no two are equal, so that no advantage is zero."""
    return [float(place) for place in range(len(completions))]


def fixed_rollout(prompts_, trainer, special=0):
    """Completions of 1 to 12 tokens that depend on the prompt, its repetition and the step only, so that they are the same
    whatever the number of processes; without the tokenizer's last `special` tokens."""
    tokenizer, seen = trainer._tokenizer, Counter()
    ids, completions = [], []
    for prompt in prompts_:
        rng = random.Random(f"{prompt}/{seen[prompt]}/{trainer.state.global_step}")
        seen[prompt] += 1
        length = rng.randint(1, 12)
        ids.append(tokenizer(prompt)["input_ids"])
        completions.append(
            [rng.randrange(3, len(tokenizer) - special) for _ in range(length - 1)] + [tokenizer.eos_token_id]
        )
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


def fixed_turn(trainer):
    """Stands for TRL's generation, which continues what it gets. As `fixed_rollout`, but what is asked for once depends on
    its tokens only, whatever the number of processes."""
    eos, size = trainer._tokenizer.eos_token_id, len(trainer._tokenizer)

    def generate(prompt_ids, images, fields, num_generations):
        seen, completions = Counter(), []
        for ids in map(tuple, prompt_ids):
            place = seen[ids] if num_generations > 1 else "alone"
            seen[ids] += 1
            rng = random.Random(f"{ids}/{place}/{trainer.state.global_step}")
            completions.append([*(rng.randrange(3, size) for _ in range(rng.randint(0, 11))), eos])
        return completions, None

    return generate


def vision_rollout(prompts_, trainer):
    """With the image tokens of each prompt."""
    texts = [next(part["text"] for part in prompt[-1]["content"] if part["type"] == "text") for prompt in prompts_]
    return {**fixed_rollout(texts, trainer, 4), "prompt_ids": trainer._tokenize_prompts(prompts_)[0]}


def truncated_rollout(prompts_, trainer):
    """Every second completion lacks its end."""
    rollout = fixed_rollout(prompts_, trainer)
    rollout["completion_ids"] = [
        row[:-1] if i % 2 and len(row) > 1 else row for i, row in enumerate(rollout["completion_ids"])
    ]
    return rollout


def config(output_dir, **overrides) -> CreditGRPOConfig:
    settings = {
        "output_dir": str(output_dir),
        "bf16": False,
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "seed": 3,
    }
    kind = overrides.pop("kind", CreditGRPOConfig)
    return kind(**(settings | overrides))
