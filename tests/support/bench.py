"""A small model for the benchmark, a slow AUROC, methods of your own, and changed results."""

import copy
import dataclasses
import re

import pytest
import torch
from helpers import save_tiny_model

from trl_credit import CreditMethod, Paper, mean_one
from trl_credit.toy.build_model import build_tokenizer


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


@dataclasses.dataclass(frozen=True)
class Knows(CreditMethod):
    """Finds the wrong digit of a sum in the completion's text, and adds to its advantage.

    Args:
        term_there: What it adds.
    """

    term_there: float

    name = "knows"
    paper = Paper(title="none", id="none", citation="none")
    reweights = False

    def term(self, inputs):
        term = torch.zeros_like(inputs.policy_logps)
        for row, ids in enumerate(inputs.token_ids):
            text = build_tokenizer().decode(ids[inputs.mask[row]])
            for found in re.finditer(r"(\d+)\+(\d+)=(\d+)", text):
                right, wrong = str(int(found[1]) + int(found[2])), found[3]
                if right != wrong:
                    place = next(i for i, (a, b) in enumerate(zip(right, wrong, strict=True)) if a != b)
                    term[row, found.start(3) + place] = self.term_there
        return term


KNOWS = f"{__name__}.Knows"


def changed(results, **changes):
    """A copy of nested results with other entries, by their keys with `__` between them."""
    results = copy.deepcopy(results)
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = results
        for key in keys:
            place = place[key]
        place[last] = value
    return results
