"""A two-step chain whose policy gradients are known: expectations over all groups of completions, and samples of groups.

A prompt has two binary decisions, the second after either outcome of the first, with probabilities sigmoid(feature . theta),
and a reward of 0 or 1 for each of its four completions.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np


COMPLETIONS = list(itertools.product((0, 1), repeat=2))


@dataclass(frozen=True)
class Prompt:
    """Features of the first decision and of the second after either outcome of the first, and the completions' rewards."""

    features: np.ndarray
    rewards: tuple[float, ...]

    def probability(self, decision: int, outcome: int) -> float:
        right = 1 / (1 + math.exp(-self.features[decision].sum()))  # theta is 1 everywhere
        return right if outcome else 1 - right

    def token_probabilities(self, completion: int) -> list[float]:
        first, second = COMPLETIONS[completion]
        return [self.probability(0, first), self.probability(1 + first, second)]

    def token_gradients(self, completion: int) -> list[np.ndarray]:
        """Of the log-prob of either token."""
        first, second = COMPLETIONS[completion]
        return [
            (outcome - self.probability(decision, 1)) * self.features[decision]
            for decision, outcome in ((0, first), (1 + first, second))
        ]

    def value(self, written: tuple[int, ...]) -> float:
        """Expected reward after these outcomes."""
        total = mass = 0.0
        for completion, outcomes in enumerate(COMPLETIONS):
            if outcomes[: len(written)] == written:
                mass += math.prod(self.token_probabilities(completion))
                total += math.prod(self.token_probabilities(completion)) * self.rewards[completion]
        return total / mass

    def true_advantages(self, completion: int) -> list[float]:
        first, second = COMPLETIONS[completion]
        values = [self.value(()), self.value((first,)), self.value((first, second))]
        return [values[1] - values[0], values[2] - values[1]]

    def gradient(self) -> np.ndarray:
        """Of the expected reward."""
        return sum(
            math.prod(self.token_probabilities(c)) * self.rewards[c] * sum(self.token_gradients(c)) for c in range(4)
        )


def uniform(prompt: Prompt, group: tuple[int, ...]) -> list[list[float]]:
    rewards = [prompt.rewards[c] for c in group]
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [[(r - mean) / (std + 1e-4)] * 2 for r in rewards]


def true(prompt: Prompt, group: tuple[int, ...]) -> list[list[float]]:
    return [prompt.true_advantages(c) for c in group]


def otb(prompt: Prompt, group: tuple[int, ...]) -> list[list[float]]:
    """Of equal rewards exactly 0, as a baseline has it."""
    energies, found = [], [[0.0, 0.0] for _ in group]
    for c in group:
        squares = [1 - 2 * p + p**2 + (1 - p) ** 2 for p in prompt.token_probabilities(c)]
        energies.append([squares[0], squares[0] + squares[1]])
    for t in (0, 1):
        total = sum(e[t] for e in energies)
        baseline = sum(e[t] * prompt.rewards[c] for e, c in zip(energies, group, strict=True)) / total
        for i, c in enumerate(group):
            found[i][t] = prompt.rewards[c] - baseline
    return found


METHODS = {"uniform": uniform, "otb": otb, "true": true}


def group_gradient(prompt: Prompt, group: tuple[int, ...], method: str) -> np.ndarray:
    credit = METHODS[method](prompt, group)
    return sum(
        a * g / len(group)
        for c, row in zip(group, credit, strict=True)
        for a, g in zip(row, prompt.token_gradients(c), strict=True)
    )


@dataclass(frozen=True)
class Known:
    """All groups of N completions of a prompt: their probabilities and, by method, their gradients."""

    prompt: Prompt
    probabilities: np.ndarray
    gradients: dict[str, np.ndarray]

    def mean(self, method: str) -> np.ndarray:
        return self.probabilities @ self.gradients[method]

    def square(self, method: str) -> float:
        return float(self.probabilities @ (self.gradients[method] ** 2).sum(-1))


def known(prompt: Prompt, size: int = 3, methods: tuple[str, ...] = tuple(METHODS)) -> Known:
    groups = list(itertools.product(range(4), repeat=size))
    single = [math.prod(prompt.token_probabilities(c)) for c in range(4)]
    return Known(
        prompt,
        np.array([math.prod(single[c] for c in group) for group in groups]),
        {method: np.array([group_gradient(prompt, group, method) for group in groups]) for method in methods},
    )


def make_prompt(rng: np.random.Generator, size: int = 6, sure: float = 1.5) -> Prompt:
    """A prompt whose likely outcomes are right."""
    features = rng.normal(size=(3, size)) / math.sqrt(size) + sure / size
    return Prompt(features, (0.0, float(rng.random() < 0.5), 0.0, 1.0))


def sampled(prompts: list[Known], rng: np.random.Generator, noise: float = 0.0) -> dict[str, np.ndarray]:
    """Two groups of each prompt, as `trl_credit.bench.true.gradients.group_sketches` has them.

    Args:
        prompts: The prompts.
        rng: Random numbers.
        noise: Of either half of the true gradients, the same for both groups: prefixes that both have share it.
    """
    chosen = [[rng.choice(len(p.probabilities), p=p.probabilities) for p in prompts] for _ in (0, 1)]

    def rows(method: str) -> np.ndarray:
        return np.array([[p.gradients[method][i] for p, i in zip(prompts, side, strict=True)] for side in chosen])

    exact = rows("true")
    halves = {f"true, half {half}": exact + noise * rng.normal(size=exact.shape[1:])[None] for half in (0, 1)}
    return {method: rows(method) for method in METHODS if method != "true"} | halves


def expected(prompts: list[Known], method: str, batch: int) -> dict[str, float]:
    """`along`, `square`, `signal` and `length` of these prompts, by enumeration."""
    means = [p.mean(method) for p in prompts]
    targets = [p.prompt.gradient() for p in prompts]
    count = len(prompts)

    def of(alike: list[float], a: list[np.ndarray], b: list[np.ndarray]) -> float:
        apart = np.sum(a, 0) @ np.sum(b, 0) - sum(x @ y for x, y in zip(a, b, strict=True))
        return sum(alike) / count / batch + (1 - 1 / batch) * apart / (count * (count - 1))

    return {
        "along": of([m @ t for m, t in zip(means, targets, strict=True)], means, targets),
        "square": of([p.square(method) for p in prompts], means, means),
        "signal": of([m @ m for m in means], means, means),
        "length": of([t @ t for t in targets], targets, targets),
    }
