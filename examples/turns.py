# /// script
# requires-python = ">=3.11"
# dependencies = ["trl-credit"]
#
# [tool.uv.sources]
# trl-credit = { path = "..", editable = true }  # outside the clone: the clone's path, or { git = "ITS ADDRESS" }
# ///
"""Several turns with an environment, rewarded one by one: `credit: turn`.

    python examples/turns.py

A sum of four numbers is worked out in three turns. Before each turn the environment writes six letters, which stand for
what a tool returns and are not trained on; the policy answers with a step, such as `83+48=131;`. A turn is rewarded if its
step is right. `turn` compares each turn with the same turn of its siblings: a wrong last step does not blame a right first
one. Runs in a minute on a CPU.
"""

import random
import re
import string

import torch

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import make_dataset


torch.set_num_threads(1)  # so small a model is fastest on one thread

TERMS = 4
TURNS = TERMS - 1
UPDATES = 20


def rollout(prompts: list[str], trainer) -> dict[str, list]:
    """Lets policy and environment take turns. `env_mask` is 0 where the environment wrote."""
    tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    completions: list[list[int]] = [[] for _ in prompts]
    masks: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for turn in range(TURNS):
        for i in going:
            letters = "".join(random.choices(string.ascii_lowercase, k=6))
            observed = tokenizer(letters, add_special_tokens=False)["input_ids"]
            completions[i] += observed
            masks[i] += [0] * len(observed)
        inputs = tokenizer.pad(
            {"input_ids": [prompt_ids[i] + completions[i] for i in going]}, padding_side="left", return_tensors="pt"
        )
        last = turn == TURNS - 1  # the last turn also states the result, and ends by itself
        stop = {} if last else {"stop_strings": [";"], "tokenizer": tokenizer}
        with torch.no_grad():
            output = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=24, **stop)
        written = output[:, inputs["input_ids"].size(1) :].tolist()
        for i, tokens in zip(going, written, strict=True):
            tokens = [token for token in tokens if token != tokenizer.pad_token_id or token == tokenizer.eos_token_id]
            if tokenizer.eos_token_id in tokens:
                tokens = tokens[: tokens.index(tokenizer.eos_token_id) + 1]
            completions[i] += tokens
            masks[i] += [1] * len(tokens)
        going = [i for i in going if completions[i][-1] != tokenizer.eos_token_id]
        if not going:
            break
    return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None, "env_mask": masks}


def right_steps(prompts: list[str], completions: list[str], **kwargs) -> list[list[float]]:
    """1 for each turn whose step is the right one."""
    rewards = []
    for prompt, completion in zip(prompts, completions, strict=True):
        total, *terms = map(int, re.findall(r"\d+", prompt))
        turns = re.split(r"[a-z]{6}", completion)[1:]
        each = []
        for term, text in zip(terms, turns, strict=False):
            each.append(float(text.startswith(f"{total}+{term}={total + term};")))
            total += term
        rewards.append(each)
    return rewards


random.seed(0)
trainer = CreditGRPOTrainer(
    model=embedded_model_path(),
    reward_funcs=right_steps,
    rollout_func=rollout,
    args=CreditGRPOConfig(
        output_dir="outputs/turns",
        credit="turn",
        per_device_train_batch_size=64,
        max_completion_length=96,
        learning_rate=5e-5,
        max_steps=UPDATES,
        logging_steps=1,
        gradient_checkpointing=False,  # it would switch the cache off while the policy writes
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=make_dataset(1000, num_terms=TERMS, style="letters"),
)
trainer.train()

logs = [entry for entry in trainer.state.log_history if "reward" in entry]
quarter = max(1, len(logs) // 4)
first, final = (sum(entry["reward"] for entry in part) / quarter for part in (logs[:quarter], logs[-quarter:]))
print(f"right steps of {TURNS}: {first:.2f} in the first quarter of the updates, {final:.2f} in the last")
print(f"mean size of a token's advantage: {logs[-1]['credit/token_advantage_size']:.2f}")
