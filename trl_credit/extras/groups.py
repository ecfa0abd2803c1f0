"""Classifies the groups of a generation batch by their rewards."""

import math

import numpy as np
import torch


KEPT, TOO_EASY, TOO_HARD, UNSCORED = range(4)


def classify_groups(
    rewards: np.ndarray,
    weights: np.ndarray,
    num_generations: int,
    *,
    column: int | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    every_function: bool = False,
) -> np.ndarray:
    """Classifies each group by whether its rewards provide a learning signal.

    Args:
        rewards: (N, F) rewards of N completions, group after group, by F reward functions; NaN for no reward.
        weights: (F,) weights of the functions.
        num_generations: Completions per group.
        column: Index of the function whose group mean decides. If `None`, groups with varying rewards are kept.
        bounds: With `column`, a group is kept if that mean lies strictly between these.
        every_function: Whether one function that varies within the group is enough, even if the weighted sum does not
            (TRL's `multi_objective_aggregation="normalize_then_sum"`).

    Returns:
        (N / num_generations,) of `KEPT`, `TOO_EASY`, `TOO_HARD` or `UNSCORED` (no completion has a reward). Without
        `column`, groups with equal rewards are too easy if their reward is positive, else too hard.
    """
    groups = np.asarray(rewards, dtype=np.float64).reshape(-1, num_generations, len(weights))
    scored = ~np.isnan(groups)
    totals = np.where(scored.any(-1), np.where(scored, groups * weights, 0.0).sum(-1), np.nan)
    values = groups[..., column] if column is not None else totals
    counts = (~np.isnan(values)).sum(-1)
    means = np.where(np.isnan(values), 0.0, values).sum(-1) / np.maximum(counts, 1)
    if column is not None:
        low, high = bounds
        verdicts = np.select([means >= high, means <= low], [TOO_EASY, TOO_HARD], KEPT)
    else:
        varied = groups[..., np.asarray(weights) != 0] if every_function else totals[..., None]
        known = ~np.isnan(varied)
        highest = np.where(known, varied, -np.inf).max(1)
        lowest = np.where(known, varied, np.inf).min(1)
        verdicts = np.select([(highest > lowest).any(-1), means > 0], [KEPT, TOO_EASY], TOO_HARD)
    return np.where(counts > 0, verdicts, UNSCORED)


def total_rewards(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(N,) weighted sums of (N, F) rewards; NaN if no function gave a reward."""
    totals = (rewards * weights.to(rewards.device)).nansum(-1)
    return totals.masked_fill(rewards.isnan().all(-1), math.nan)
