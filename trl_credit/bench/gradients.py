"""Effect of credit on the policy gradient: its variance, and its agreement with the gradient of uniform credit.

For groups of completions of one prompt,

    g = -grad (1/N) sum_i sum_t A_it log pi(y_it)          N completions of the group

is computed from the same samples with each method's token advantages A_it. Uniform credit (A_it = A_i, GRPO's) gives an
unbiased estimate of the policy gradient (up to the group's scaling of advantages). Other token advantages may estimate
another vector, whatever the sample size.
"""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from ..toy.arithmetic import written_solution
from .groups import Group
from .scores import summary


BATCH_SIZES = (1, 8, 64)
MAX_COMPLETION_TOKENS = 40
_PROMPTS_PER_BATCH = 64
_GROUPS_PER_BACKWARD = 8  # more are not faster on a CPU, and need more memory


def sample_groups(
    model, tokenizer, prompts: Sequence[str], answers: Sequence[str], seed: int, group_size: int = 8
) -> list[Group]:
    """Samples groups from the model at temperature 1, and rewards them with `correct_answer`."""
    from ..toy.arithmetic import correct_answer

    groups = []
    eos = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), _PROMPTS_PER_BATCH):
            part = prompts[start : start + _PROMPTS_PER_BATCH]
            inputs = tokenizer(list(part), return_tensors="pt", padding=True, padding_side="left").to(model.device)
            rows = model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_COMPLETION_TOKENS,
                num_return_sequences=group_size,
                pad_token_id=tokenizer.pad_token_id,
            )[:, inputs["input_ids"].size(1) :].tolist()
            rows = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
            texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
            for i, prompt in enumerate(part):
                own = slice(i * group_size, (i + 1) * group_size)
                rewards = torch.tensor(correct_answer(texts[own], [answers[start + i]] * group_size))
                terms = [int(term) for term in re.findall(r"\d+", prompt)]
                example = {"answer": answers[start + i], "solution": written_solution(terms, random.Random(prompt))}
                groups.append(Group(prompt, tokenizer(prompt)["input_ids"], rows[own], rewards, example))
    return groups


def _logps(model: nn.Module, prompts: list[list[int]], completions: list[list[int]], pad: int) -> torch.Tensor:
    """(B, L) log-probs of all tokens of prompt and completion except the first, right-padded."""
    rows = [p + c for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def _coefficients(
    logps: torch.Tensor, prompts: list[list[int]], token_advantages: Sequence[np.ndarray], group_size: int
) -> torch.Tensor:
    """(B, L) factors of the log-probs in the loss."""
    result = torch.zeros_like(logps)
    for row, (prompt, values) in enumerate(zip(prompts, token_advantages, strict=True)):
        start = len(prompt) - 1
        values = torch.as_tensor(np.asarray(values, np.float32), device=logps.device)
        result[row, start : start + len(values)] = -values / group_size
    return result


def _flat_gradient(model: nn.Module, loss: torch.Tensor, retain_graph: bool) -> torch.Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(loss, parameters, retain_graph=retain_graph)
    return torch.cat([part.flatten().float() for part in parts])


def group_gradients(
    model: nn.Module, group: Group, token_advantages: Mapping[str, Sequence[np.ndarray]], pad: int
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Yields (label, (P,) float32 gradient) of one group with each method's token advantages, from a single forward; `None`
    where all of them are 0."""
    active = [label for label, rows in token_advantages.items() if any(np.any(row) for row in rows)]
    yield from ((label, None) for label in token_advantages if label not in active)
    if not active:
        return
    size = len(group.completions)
    prompts = [group.prompt_ids] * size
    logps = _logps(model, prompts, group.completions, pad)
    for label in active:
        loss = (_coefficients(logps, prompts, token_advantages[label], size) * logps).sum()
        yield label, _flat_gradient(model, loss, retain_graph=label != active[-1])


def uniform_gradient(model: nn.Module, groups: Sequence[Group], pad: int) -> tuple[torch.Tensor, float]:
    """Mean gradient of many groups under uniform credit, and the cosine between its two halves."""
    halves = []
    for half in (groups[::2], groups[1::2]):
        total = None
        for start in range(0, len(half), _GROUPS_PER_BACKWARD):
            rows = [
                (group.prompt_ids, completion, float(a))
                for group in half[start : start + _GROUPS_PER_BACKWARD]
                for completion, a in zip(group.completions, group.advantages, strict=True)
                if a != 0
            ]
            if not rows:
                continue
            prompts, completions, advantages = map(list, zip(*rows, strict=True))
            logps = _logps(model, prompts, completions, pad)
            credit = [np.full(len(c), a) for c, a in zip(completions, advantages, strict=True)]
            size = len(groups[0].completions)
            gradient = _flat_gradient(model, (_coefficients(logps, prompts, credit, size) * logps).sum(), False)
            total = gradient if total is None else total + gradient
        if total is None:
            raise ValueError("No group has completions of different rewards, so there is no gradient.")
        halves.append(total)
    return (halves[0] + halves[1]) / len(groups), cosine(*halves)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine of two vectors. NaN if one is zero."""
    norm = float(a.norm()) * float(b.norm())
    return float(a @ b) / norm if norm else math.nan


class Moments:
    """Mean, and trace of the covariance, of a stream of vectors (Welford's algorithm)."""

    def __init__(self, size: int):
        self.count = 0
        self.mean = torch.zeros(size)
        self._squares = 0.0

    def add(self, vector: torch.Tensor) -> None:
        self.count += 1
        delta = vector - self.mean
        self.mean += delta / self.count
        self._squares += float(delta @ (vector - self.mean))

    @property
    def trace(self) -> float:
        """Unbiased trace of the covariance of one vector."""
        return self._squares / (self.count - 1) if self.count > 1 else math.nan

    @property
    def squared_mean(self) -> float:
        """Unbiased estimate of the squared norm of the expectation. May be negative."""
        return float(self.mean @ self.mean) - self.trace / self.count


class Comparison:
    """Compares one method's gradients with the target, group by group.

    Args:
        target: (P,) low-noise gradient from other samples.
        batch_sizes: Groups per batch.
        block: Groups per jackknife block.
    """

    def __init__(self, target: torch.Tensor, batch_sizes: Sequence[int], block: int):
        self.target = target
        self.moments = Moments(len(target))
        self.batches = {size: [torch.zeros_like(target), 0, []] for size in batch_sizes}
        self.block, self.blocks = block, []
        self._block_sum = torch.zeros_like(target)

    def add(self, gradient: torch.Tensor) -> None:
        self.moments.add(gradient)
        for size, batch in self.batches.items():
            batch[0] += gradient
            batch[1] += 1
            if batch[1] == size:
                batch[2].append(cosine(batch[0], self.target))
                batch[0], batch[1] = torch.zeros_like(gradient), 0
        self._block_sum += gradient
        if self.moments.count % self.block == 0:
            self.blocks.append(self._block_sum)
            self._block_sum = torch.zeros_like(gradient)

    def _projection(self, mean: torch.Tensor, count: int) -> float:
        """Component along the target of a mean of `count` gradients, divided by the mean's norm corrected for noise."""
        own = float(mean @ mean) - self.moments.trace / count
        return float(mean @ self.target) / math.sqrt(own) if own > 0 else math.nan

    def projections(self) -> tuple[float, list[float]]:
        """[`_projection`] of all groups, and of all groups without each block."""
        count = self.moments.count
        total, left = self.moments.mean * count, count - self.block
        parts = [self._projection((total - part) / left, left) for part in self.blocks] if left else []
        return self._projection(self.moments.mean, count), parts

    def result(self) -> dict:
        """Statistics of this method alone."""
        moments = self.moments
        squared = moments.squared_mean
        return {
            "variance": moments.trace,
            "relative_variance": moments.trace / squared if squared > 0 else math.nan,
            "mean_norm": math.sqrt(squared) if squared > 0 else math.nan,
            "cosine": {str(size): summary(batch[2]) for size, batch in self.batches.items()},
            "mean_cosine": cosine(moments.mean, self.target),
        }


def bias_cosine(method: Comparison, uniform: Comparison) -> tuple[float, float]:
    """Cosine between the expected gradients of a method and of uniform credit, and its jackknife error.

    Both are projected on the same target from the same samples, so most of their noise is shared and cancels. What
    remains may take the cosine slightly above 1.
    """
    whole, parts = method.projections()
    reference, reference_parts = uniform.projections()
    ratios = [a / b if b else math.nan for a, b in zip(parts, reference_parts, strict=True)]
    k = len(ratios)
    error = math.sqrt((k - 1) ** 2 / k * np.var(ratios, ddof=1)) if k > 1 else math.nan
    return (whole / reference if reference else math.nan), error


def compare_gradients(
    model: nn.Module,
    groups: Sequence[Group],
    token_advantages: Sequence[Mapping[str, Sequence[np.ndarray]]],
    target: torch.Tensor,
    pad: int,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> dict[str, dict]:
    """Compares each method's gradients on the same groups.

    Args:
        model: The policy.
        groups: The samples.
        token_advantages: For each group and label, the (T,) token advantages of its completions. The labels include
            `uniform`.
        target: (P,) gradient under uniform credit from other samples.
        pad: Padding token id.
        batch_sizes: Groups per batch for the cosine with the target.

    Returns:
        By label: `variance`, the trace of the covariance of one group's gradient; `relative_variance`, that over the
        squared norm of its mean; `variance_over_uniform` and `relative_variance_over_uniform`; `mean_norm`; `cosine`,
        with the target by batch size (mean, standard error, batches); `mean_cosine`, of the mean over all groups;
        [`bias_cosine`], which is 1 for an unbiased estimate, and its jackknife error.
    """
    labels = list(token_advantages[0])
    sizes = [size for size in batch_sizes if size <= len(groups)]
    block = max(1, len(groups) // 8)
    comparisons = {label: Comparison(target, sizes, block) for label in labels}
    zero = torch.zeros_like(target)
    for group, own in zip(groups, token_advantages, strict=True):
        for label, gradient in group_gradients(model, group, own, pad):
            comparisons[label].add(zero if gradient is None else gradient)
    results = {label: comparison.result() for label, comparison in comparisons.items()}
    for label, result in results.items():
        bias = bias_cosine(comparisons[label], comparisons["uniform"])
        result["bias_cosine"], result["bias_cosine_stderr"] = bias
        for name in ("variance", "relative_variance"):
            result[f"{name}_over_uniform"] = result[name] / results["uniform"][name]
    return results
