"""Batches as TRL buffers them."""

import torch


# What the tests' data and rollouts do not have: a second model, turns, images, continuations
NEED_MORE = {"teacher", "turn", "gigpo", "vppo", "vine"}

# The other token methods on the tiny model, which does not know the default prompts' words, nor differs much from itself an
# update earlier
CREDIT = {
    "uniform": "uniform",
    "gcpo": {"method": "gcpo", "negative_prompt": "wrong! {prompt}"},
    "dgpo": {"method": "dgpo", "temperature": 0.002},
    "rlsd": {"method": "rlsd", "column": "answer", "template": "{answer}={prompt}"},
    "rlcsd": {"method": "rlcsd", "template": "{solution}={prompt}", "reward_threshold": 0.3},
    "certainty": "certainty",
    "otb": "otb",
    "delta": "delta",
    "fipo": {"method": "fipo", "both_sides": True},
    "forking": {"method": "forking", "fraction": 0.4},
    "random": "random",
    "shuffled": {"method": "shuffled", "of": {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}},
}


def text_batch():
    return {
        "prompt_ids": torch.tensor([[0, 1, 2], [0, 0, 3]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [0, 0, 1]]),
        "completion_ids": torch.tensor([[4, 5, 0, 0], [6, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]),
        "importance_sampling_ratio": torch.ones(2, 1),
        "old_per_token_logps": torch.ones(2, 4),
        "token_type_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 0], [0, 0, 9, 10, 0, 0, 0]]),
        "advantages": torch.tensor([1.0, 2.0]),
        "num_items_in_batch": torch.tensor(3),
        "names": ["a", "b"],
    }
