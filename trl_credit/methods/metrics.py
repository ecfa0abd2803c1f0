"""The credit metrics of one micro-batch, over all processes."""

from collections.abc import Callable

import torch

from . import CreditInputs, CreditMethod
from .ops import effective_token_fraction


def remedy_if_uniform(method: CreditMethod, inputs: CreditInputs, weights: torch.Tensor | None) -> str | None:
    """The advice for a method that is uniform in effect on some completions; `None` if it is not."""
    return method.remedy(inputs) if method.is_uniform(credit_metrics(method, inputs, weights)) else None


def credit_metrics(
    method: CreditMethod,
    inputs: CreditInputs,
    weights: torch.Tensor | None,
    extra_nonfinite: torch.Tensor | int = 0,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> dict[str, float]:
    """Metrics over the micro-batch of all processes, by name; one collective.

    `credit/weight_std` and `credit/weight_max` are over the tokens on the mask, `credit/effective_fraction` is the mean
    over completions of exp(H(w / T)) / T, `credit/nonfinite_tokens` counts tokens with a NaN or infinite signal or
    sampler log-prob. The method's own are means over the tokens on the mask whose value is finite; NaN (which TRL leaves
    out of its averages) where there are none.

    Args:
        method: The method.
        inputs: Its inputs.
        weights: (B, T) weights of mean 1 over each completion's mask, if the method has weights.
        extra_nonfinite: Tokens to add to the count.
        gather: Gathers over processes; by default there is one.
    """
    mask = inputs.mask
    # float64 where the device has it, so that one process and several agree on long batches
    dtype = torch.float64 if mask.device.type in ("cpu", "cuda") else torch.float32

    def masked_sum(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return torch.where(where, values.to(dtype), 0.0).sum()

    sums = {"nonfinite": inputs.nonfinite.sum() + extra_nonfinite}
    if weights is not None:
        occupied = mask.any(-1)
        sums["tokens"] = mask.sum()
        sums["variance"] = masked_sum((weights.to(dtype) - 1).square(), mask)
        sums["completions"] = occupied.sum()
        sums["effective"] = masked_sum(effective_token_fraction(weights.to(dtype), mask), occupied)
    for name, values in method.metrics(inputs).items():
        finite = mask & torch.isfinite(values)
        sums[f"sum {name}"], sums[f"count {name}"] = masked_sum(values, finite), finite.sum()
    largest = mask.new_zeros((), dtype=dtype) if weights is None else torch.where(mask, weights.to(dtype), 0.0).amax()

    local = torch.stack([torch.as_tensor(value, device=mask.device).to(dtype) for value in (*sums.values(), largest)])
    gathered = gather(local.unsqueeze(0))
    sums = dict(zip(sums, gathered[:, :-1].sum(0).tolist(), strict=True))

    def ratio(numerator: str, denominator: str) -> float:
        return sums[numerator] / sums[denominator] if sums[denominator] else float("nan")

    metrics = {"credit/nonfinite_tokens": sums["nonfinite"]}
    if weights is not None:
        metrics["credit/weight_std"] = ratio("variance", "tokens") ** 0.5
        metrics["credit/weight_max"] = gathered[:, -1].max().item()
        metrics["credit/effective_fraction"] = ratio("effective", "completions")
    for key in sums:
        if key.startswith("sum "):
            name = key.removeprefix("sum ")
            metrics[f"credit/{name}"] = ratio(key, f"count {name}")
    return metrics
