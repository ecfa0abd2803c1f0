"""A small model for the benchmark, and a slow AUROC."""

import dataclasses

import pytest
import torch
from helpers import save_tiny_model

from trl_credit import CreditMethod, Paper, mean_one


@pytest.fixture(scope="module")
def bench_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model"
    save_tiny_model(path, scale=2.0)
    return str(path)


def slow_auroc(weights, labels) -> float:
    pairs = [
        (a, b) for a, x in zip(weights, labels, strict=True) if x for b, y in zip(weights, labels, strict=True) if not y
    ]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


@dataclasses.dataclass(frozen=True)
class Favourite(CreditMethod):
    """Your own method: all credit to one token.

    Args:
        token: Its place.
    """

    token: int = 0

    name = "favourite"
    paper = Paper(title="none", id="none", citation="none")

    def weights(self, inputs):
        scores = torch.zeros_like(inputs.policy_logps)
        scores[:, self.token] = 1.0
        return mean_one(scores, inputs.mask)


FAVOURITE = f"{__name__}.Favourite"
