"""Estimates the values of prefixes from sampled continuations, as many as a standard error asks for.

    V(prefix) ~ mean_k r_k        r_k: reward of the k-th continuation of the prefix by the policy

A number of continuations is drawn from every prefix, then more where the standard error is still too large. Draw k of a
prefix has its own number, so that a caller can give it its own seed: results then depend neither on batches nor on a stop
in between.

The standard error takes the rewards' variance after two rewards at either bound have been added (Agresti and Coull 1998,
who do this for shares): 0 of K or K of K right is not without error. The mean itself has nothing added, so for a fixed
number of draws (`least` = `most`) it is unbiased. Stopping early where draws agree pulls it towards what they agree on, by
a small part of the stated error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np


Prefix = TypeVar("Prefix")
Continuation = TypeVar("Continuation")
# Rewards added at either bound
ADDED = 2


@dataclass(frozen=True)
class Values:
    """Estimates of N prefixes.

    Attributes:
        mean: (N,) means of the finite rewards. NaN if there are none.
        stderr: (N,) standard errors, never 0 for a finite count. NaN if there are no finite rewards.
        count: (N,) numbers of finite rewards.
        halves: (N, 2) means of the draws with even and with odd numbers, whose errors are independent.
    """

    mean: np.ndarray
    stderr: np.ndarray
    count: np.ndarray
    halves: np.ndarray


def standard_error(rewards: Sequence[float], bounds: tuple[float, float] = (0.0, 1.0)) -> float:
    """Standard error of the mean of the finite rewards, whose variance has [`ADDED`] rewards at either bound in it. NaN if
    there are none."""
    known = np.asarray(rewards, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return float("nan")
    low, high = min(bounds[0], known.min()), max(bounds[1], known.max())
    added = np.concatenate([known, np.repeat([low, high], ADDED)])
    return float(added.std() / np.sqrt(len(known)))


def summarized(rewards: Sequence[Sequence[float]], bounds: tuple[float, float] = (0.0, 1.0)) -> Values:
    """The estimates from each prefix's rewards in the order of their draws."""

    def mean(row: np.ndarray) -> float:
        known = row[np.isfinite(row)]
        return float(known.mean()) if len(known) else float("nan")

    rows = [np.asarray(row, np.float64) for row in rewards]
    return Values(
        mean=np.array([mean(row) for row in rows]),
        stderr=np.array([standard_error(row, bounds) for row in rows]),
        count=np.array([int(np.isfinite(row).sum()) for row in rows], np.int64),
        halves=np.array([[mean(row[::2]), mean(row[1::2])] for row in rows]).reshape(-1, 2),
    )


def sampled_values(
    prefixes: Sequence[Prefix],
    rewards_of: Callable[[list[Prefix], list[int]], Sequence[float]],
    *,
    least: int = 8,
    most: int = 64,
    stderr: float = 0.1,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Values:
    """Estimates the values of N prefixes.

    Args:
        prefixes: The prefixes, in whatever form `rewards_of` takes.
        rewards_of: Draws one continuation for each of the given prefixes (one may come up several times) and given draw
            numbers, and returns their rewards. A draw without a reward is NaN.
        least: Draws from every prefix, an even number so that both halves have as many.
        most: Draws from a prefix at most.
        stderr: Standard error above which more are drawn.
        bounds: Bounds of the rewards. Rewards beyond them widen them, prefix by prefix.

    Raises:
        ValueError: A number is out of range, or `rewards_of` returns another number of rewards.
    """
    if least < 2 or least % 2:
        raise ValueError(f"`least` must be an even number of draws from 2, got {least}.")
    if most < least:
        raise ValueError(f"`most` must be at least `least` ({least}), got {most}.")
    if not stderr > 0:
        raise ValueError(f"`stderr` must be positive, got {stderr}.")
    rewards: list[list[float]] = [[] for _ in prefixes]
    missing = dict.fromkeys(range(len(prefixes)), least)
    while missing:
        asked = [(i, len(rewards[i]) + k) for i, number in missing.items() for k in range(number)]
        drawn = list(rewards_of([prefixes[i] for i, _ in asked], [draw for _, draw in asked]))
        if len(drawn) != len(asked):
            raise ValueError(f"{len(asked)} continuations were asked for, and {len(drawn)} rewards came back.")
        for (i, _), reward in zip(asked, drawn, strict=True):
            rewards[i].append(float(reward))
        missing = {i: number for i in missing if (number := _missing(rewards[i], least, most, stderr, bounds))}
    return summarized(rewards, bounds)


def _missing(rewards: list[float], least: int, most: int, stderr: float, bounds: tuple[float, float]) -> int:
    """Draws still to make: what the standard error so far asks for, an even number, at most twice what there is."""
    error, count = standard_error(rewards, bounds), len(rewards)
    if count >= most or not error > stderr:  # NaN: more draws would have no reward either
        return 0
    more = min(max(np.ceil(count * (error / stderr) ** 2) - count, 2), count)
    return int(min(more + more % 2, most - count))
