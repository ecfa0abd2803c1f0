"""Groups of completions with rewards, as training sees them, and the credit of every method on them.

TRL's advantages of a group are A_i = (r_i - mean r) / (std r + 1e-4).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..inspection.scoring import Completion, CreditScorer
from ..records.record import CompletionCredit


def group_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """TRL's advantages for the (N,) rewards of one group."""
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


@dataclass(frozen=True)
class Group:
    """Completions of one prompt.

    Args:
        prompt: Text or messages.
        prompt_ids: Its token ids.
        completions: The token ids of each completion.
        rewards: (N,) rewards.
        example: The dataset's row, for methods that read its columns.
    """

    prompt: str | list[dict]
    prompt_ids: list[int]
    completions: list[list[int]]
    rewards: Float[Tensor, " group"]
    example: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def advantages(self) -> Float[Tensor, " group"]:
        """(N,) TRL's advantages."""
        return group_advantages(self.rewards)


def score_groups(
    scorer: CreditScorer, groups: Sequence[Group], only: int | None = None, one_batch: bool = False
) -> list[list[CompletionCredit]]:
    """Scores groups with all of the scorer's methods, as training would: with rewards, advantages and columns.

    Args:
        scorer: The scorer.
        groups: The groups.
        only: Place of the one completion of each group to score. The others then cost no forward but those of the rollout
            stage.
        one_batch: Whether the groups are one generation batch, whatever their size ([`CreditScorer.score`]).

    Returns:
        For each group the records of its completions. `record.token_advantages[label]` are the (T,) token advantages of a
        method, of any kind; `record.weights[label]` its (T,) weights, if it has some.
    """
    records = iter(
        scorer.score(
            [
                Completion(
                    prompt=group.prompt,
                    token_ids=ids,
                    reward=reward,
                    advantage=advantage,
                    group=number,
                    example=group.example,
                    scored=only is None or place == only,
                )
                for number, group in enumerate(groups)
                for place, (ids, reward, advantage) in enumerate(
                    zip(group.completions, group.rewards.tolist(), group.advantages.tolist(), strict=True)
                )
            ],
            one_batch=one_batch,
        )
    )
    return [[next(records) for _ in (group.completions if only is None else [only])] for group in groups]


def blame(record: CompletionCredit, label: str) -> np.ndarray:
    """(T,) how much a method blames each token of a completion with a negative advantage: minus its token advantage.

    Of a method that multiplies the advantage, these are its weights: the same up to a factor, without its rounding.
    """
    token_advantages, weights = record.token_advantages[label], record.weights.get(label)
    multiplies = weights is not None and np.array_equal(token_advantages, np.float32(record.advantage) * weights)
    return weights if multiplies and record.advantage < 0 else -token_advantages
