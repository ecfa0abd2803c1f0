"""From a micro-batch to its token advantages: signals, then weights, then advantages."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .batching import UpdatePlan, cut, loss_mask, placeholder_row, select
from .methods import CreditInputs, CreditMethod
from .signals import PolicyForward, Signal, SignalSource
from .signals.context import PolicyContext
from .signals.models import causal_model, padding_affects_output, vocabulary_size


@dataclass(frozen=True)
class StartedPass:
    """A credit pass that waits for the policy's forward.

    Args:
        batch: The micro-batch, of B rows.
        plan: What it runs.
        view: Its rows that need credit; `None` if no process has any.
        own: What the signals' own forwards gave for those rows, (b, T, ...).
    """

    batch: dict[str, Any]
    plan: UpdatePlan
    view: dict[str, Any] | None
    own: dict[Signal, torch.Tensor]


@dataclass(frozen=True)
class CreditResult:
    """The outcome of a credit pass.

    Args:
        inputs: What the method saw, of the b rows that need credit.
        weights: (b, T) weights; `None` for a method without.
        row_advantages: (b, T) or (b,) token advantages of these rows.
        token_advantages: (B, T) or (B,) of every row, scaled by the plan: what the loss reads. `None` if nothing needed
            credit, so that the sequence advantages stay.
        view: The b rows, with their sequence advantages; `None` if nothing needed credit.
        unscored: Tokens on the mask whose log-prob under the sampler is not finite.
    """

    inputs: CreditInputs
    weights: torch.Tensor | None
    row_advantages: torch.Tensor | None = None
    token_advantages: torch.Tensor | None = None
    view: dict[str, Any] | None = None
    unscored: torch.Tensor | int = 0


class CreditPass:
    """Computes the token advantages of micro-batches with one credit method.

    Whoever builds one runs the hooks of its sources (see [`SignalSource`]) around the loading of the policy, and their
    `extend_rollout` on each generation batch.

    Args:
        method: The credit method.
        context: The policy, which may be loaded later.
        cache_device: Where signals are kept between iterations; by default where they are computed.

    Attributes:
        sources (`dict[Signal, SignalSource]`): What computes each signal that the method asks for.

    Example:

    ```python
    started = credit_pass.start(model, batch, plan)
    logps, entropies = ...  # the policy's forward
    result = credit_pass.finish(started, PolicyForward(logps, entropies, None))
    batch["advantages"] = result.token_advantages
    ```
    """

    def __init__(self, method: CreditMethod, context: PolicyContext, cache_device: str | None = None):
        self.method = method
        self.context = context
        self.cache_device = cache_device
        self.sources: dict[Signal, SignalSource] = {signal: signal.source() for signal in method.signals()}
        self._checked = False

    @functools.cached_property
    def vocab_size(self) -> int:
        """Of the policy's next-token distribution."""
        return vocabulary_size(causal_model(self.context.accelerator.unwrap_model(self.context.model)))

    @functools.cached_property
    def padding_affects_output(self) -> str | None:
        """Why padding may not be cut from forwards; see [`padding_affects_output`]."""
        return padding_affects_output(self.context.model.config.get_text_config())

    def start(self, model: nn.Module, batch: dict[str, Any], plan: UpdatePlan) -> StartedPass:
        """Runs the signals' own forwards, without gradient and in eval mode, on the rows that need credit."""
        if not plan.any_credit:
            return StartedPass(batch, plan, None, {})
        view = self._view(batch, plan)
        return StartedPass(batch, plan, view, self._own_forwards(model, view, plan))

    @staticmethod
    def _view(batch: dict[str, Any], plan: UpdatePlan) -> dict[str, Any]:
        """The rows that need credit; where this process has none, one with nothing in the loss."""
        if plan.credit_rows == list(range(len(batch["advantages"]))):
            return batch
        view = select(batch, plan.credit_rows or [0])
        if not plan.credit_rows:
            view["completion_mask"] = torch.zeros_like(view["completion_mask"])
        return view

    def _own_forwards(self, model: nn.Module, view: dict[str, Any], plan: UpdatePlan) -> dict[Signal, torch.Tensor]:
        """Results of each signal's own forwards for the rows of the view, (b, T, ...), zero where there are none.

        They run in groups of rows alike in length, without padding to the micro-batch's longest.
        """
        own = dict(plan.cache)
        place = {row: i for i, row in enumerate(plan.credit_rows)}
        for signal, groups in plan.forwards.items():
            if signal in own:
                own[signal] = own[signal].to(self.context.accelerator.device)
                continue
            source, result = self.sources[signal], None
            for rows in groups:
                rows = [place[row] for row in rows]
                part = select(view, rows) if rows else placeholder_row(view)
                part = part if self.padding_affects_output else cut(part)
                with torch.no_grad():
                    values = source.forward(self.context, model, part)
                if result is None:
                    shape = view["completion_ids"].shape + values.shape[2:]
                    result = torch.zeros(shape, dtype=values.dtype, device=values.device)
                if rows:
                    result[rows, : values.size(1)] = values
            own[signal] = result
            if plan.keep and source.bytes_per_token(self.context):
                plan.cache[signal] = result.to(self.cache_device or result.device)
        return own

    @torch.no_grad()
    def finish(self, started: StartedPass, policy: PolicyForward) -> CreditResult:
        """Turns the sequence advantages into token advantages, with the policy's forward of all rows of the batch.

        Raises:
            ValueError: The method's weights are not what it declares (checked once).
        """
        batch, plan, view = started.batch, started.plan, started.view
        if view is None:  # metrics there are all the same, of nothing
            none = policy.logps.new_zeros(1, 1)
            inputs = CreditInputs(
                mask=none.bool(),
                policy_logps=none,
                policy_entropy=none,
                vocab_size=self.vocab_size,
                signals=dict.fromkeys(self.sources, none),
            )
            return CreditResult(inputs, self.method.weights(inputs))
        if view is not batch:
            policy = policy.rows(plan.credit_rows or [0])
        inputs = CreditInputs(
            mask=loss_mask(view),
            policy_logps=policy.logps,
            policy_entropy=policy.entropy,
            vocab_size=self.vocab_size,
            signals={
                signal: source.compute(self.context, view, started.own.get(signal), policy)
                for signal, source in self.sources.items()
            },
            compute_dtype=self.context.forward_dtype,
        )
        weights = self.method.weights(inputs)
        if not self._checked and self.method.reweights:
            self._checked = True
            check_weights(self.method, weights, inputs)
        row_advantages = every = self.method.token_advantages(view["advantages"], weights, inputs)
        if view is not batch:  # the other rows' advantages are zero, or nothing of them is in the loss
            every = row_advantages.new_zeros(len(batch["advantages"]), *row_advantages.shape[1:])
            if plan.credit_rows:
                every[plan.credit_rows] = row_advantages
        if plan.scale is not None:
            every = every * plan.scale.view(-1, *[1] * (every.dim() - 1))
        unscored = 0
        if "sampling_per_token_logps" in view:
            unscored = (~torch.isfinite(view["sampling_per_token_logps"]) & inputs.mask).sum()
        # A copy, as the loss gets token advantages in the batch, which the view may be
        return CreditResult(inputs, weights, row_advantages, every, dict(view), unscored)


def check_weights(method: CreditMethod, weights: torch.Tensor, inputs: CreditInputs) -> None:
    """Refuses weights that are not what a reweighting method declares. What it makes of a NaN is not judged.

    Raises:
        ValueError: They are not (B, T) without gradient, >= 0, 0 off the mask and of mean 1 over each completion's mask.
    """
    name, mask, shape = method.name, inputs.mask, tuple(inputs.mask.shape)
    if weights.shape != mask.shape or weights.requires_grad:
        raise ValueError(
            f"credit method {name!r}: `weights` must return a {shape} tensor without gradient, got "
            f"{tuple(weights.shape)}{' with one' if weights.requires_grad else ''}."
        )
    finite = ~inputs.nonfinite.any(-1)
    weights, mask = weights[finite], mask[finite]
    if not len(mask):
        return
    tokens = mask.sum(-1)
    means = torch.where(mask, weights, 0.0).sum(-1) / tokens.clamp(min=1)
    off = (means - (tokens > 0).to(means)).abs().max().item()
    if not (off <= 1e-2 and (weights >= 0).all() and (weights[~mask] == 0).all()):
        raise ValueError(
            f"credit method {name!r}: `weights` must be >= 0, 0 off the mask and of mean 1 over each completion's mask; "
            f"the means are off by up to {off:.3g}. `trl_credit.mean_one` scales scores so; a method that does not "
            "reweight sets `reweights = False`."
        )
