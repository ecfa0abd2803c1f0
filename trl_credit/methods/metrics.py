"""Credit metrics of one micro-batch across all processes."""

from collections.abc import Callable

import torch

from . import CreditInputs, CreditMethod
from .ops import effective_token_fraction, weights_mean


def remedy_if_uniform(method: CreditMethod, inputs: CreditInputs, weights: torch.Tensor | None) -> str | None:
    """The method's advice if its weights are effectively uniform on these inputs, else `None`."""
    return method.remedy(inputs) if method.is_uniform(credit_metrics(method, inputs, weights)) else None


def credit_metrics(
    method: CreditMethod,
    inputs: CreditInputs,
    weights: torch.Tensor | None,
    extra_nonfinite: torch.Tensor | int = 0,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> dict[str, float]:
    """Metrics of a micro-batch across all processes, by name. Makes one collective call.

    `credit/weight_std` (around each completion's mean, which is 1 for most methods) and `credit/weight_max` cover the
    tokens on the mask. `credit/weight_mean` is logged by methods whose weights have another mean.
    `credit/effective_fraction` is the mean over completions of exp(H(w / sum w)) / T. These four leave out completions for
    which a signal was not computed. `credit/advantage_change` is the mean of abs(A_t - A) over the tokens on the mask, for
    methods that do more than weight. `credit/nonfinite_tokens` counts tokens with a NaN or infinite log-prob, entropy,
    signal or sampler log-prob. The method's own metrics are means over the finite values on the mask, or NaN if there are
    none (TRL leaves NaN out of its averages).

    Args:
        method: The method.
        inputs: Its inputs.
        weights: (B, T) non-negative weights, or `None` if the method has no weights.
        extra_nonfinite: Number of tokens to add to `credit/nonfinite_tokens`.
        gather: Gathers a tensor from all processes; the default is for a single process.
    """
    mask = inputs.mask
    # float64 where the device supports it, so that one process and several agree on long batches
    dtype = torch.float64 if mask.device.type in ("cpu", "cuda") else torch.float32

    def masked_sum(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return torch.where(where, values.to(dtype), 0.0).sum()

    sums = {"nonfinite": inputs.nonfinite.sum() + extra_nonfinite}
    weighted = inputs.complete
    if weights is not None:
        occupied = weighted.any(-1)
        sums["tokens"] = weighted.sum()
        centre = 1.0 if method.mean_one else weights_mean(weights.to(dtype), weighted).unsqueeze(-1)
        sums["variance"] = masked_sum((weights.to(dtype) - centre).square(), weighted)
        sums["completions"] = occupied.sum()
        if not method.mean_one:
            sums["sum weight_mean"], sums["count weight_mean"] = masked_sum(weights, weighted), weighted.sum()
        sums["effective"] = masked_sum(effective_token_fraction(weights.to(dtype), weighted), occupied)
    values_of = dict(method.metrics(inputs))
    if inputs.advantages is not None and (weights is None or method.has_term or method.own_advantages):
        changed = method.token_advantages(inputs.advantages, weights, inputs)
        changed = changed.unsqueeze(1) if changed.dim() == 1 else changed
        values_of["advantage_change"] = (changed - inputs.advantages.unsqueeze(1)).abs().expand_as(mask)
    for name, values in values_of.items():
        finite = mask & torch.isfinite(values)
        sums[f"sum {name}"], sums[f"count {name}"] = masked_sum(values, finite), finite.sum()
    largest = (
        mask.new_zeros((), dtype=dtype) if weights is None else torch.where(weighted, weights.to(dtype), 0.0).amax()
    )

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
