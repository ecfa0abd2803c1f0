"""Computes a micro-batch's token advantages: signals, then weights, then advantages."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .batching import (
    HAS_CREDIT,
    MAX_FORWARDS,
    STAGE_PREFIX,
    UpdatePlan,
    cut,
    loss_mask,
    placeholder_row,
    select,
    turns_of,
    with_advantage,
)
from .methods import CreditInputs, CreditMethod
from .signals import PolicyForward, Signal, SignalSource
from .signals.context import PolicyContext
from .signals.models import causal_model, padding_affects_output, vocabulary_size


@dataclass(frozen=True)
class StartedPass:
    """A credit pass waiting for the policy's forward.

    Args:
        batch: The micro-batch of B rows.
        plan: The micro-batch's plan.
        view: The b rows that need credit; `None` if no process has any.
        own: Results of the signals' own forwards for those rows, (b, T, ...); `None` if no process ran any.
    """

    batch: dict[str, Any]
    plan: UpdatePlan
    view: dict[str, Any] | None
    own: dict[Signal, torch.Tensor | None]


@dataclass(frozen=True)
class CreditResult:
    """Result of a credit pass.

    Args:
        inputs: The method's inputs for the b rows that need credit.
        weights: (b, T) weights; `None` if the method has none.
        row_advantages: (b, T) or (b,) token advantages of these rows.
        token_advantages: (B, T) or (B,) advantages of every row, scaled by the plan, for the loss. `None` if no row
            needed credit; the loss then uses the sequence advantages, all of them zero.
        ratio_weights: (B, T) weights of every row, 1 in those that need no credit, if they enter through the loss's
            ratio ([`CreditMethod.ratio_logps`]); else `None`.
        view: The b rows with their sequence advantages; `None` if no row needed credit.
        rows: Where these b rows stand in the micro-batch.
        unscored: Number of tokens on the mask with a NaN or infinite sampler log-prob.
    """

    inputs: CreditInputs
    weights: torch.Tensor | None
    row_advantages: torch.Tensor | None = None
    token_advantages: torch.Tensor | None = None
    ratio_weights: torch.Tensor | None = None
    view: dict[str, Any] | None = None
    rows: tuple[int, ...] = ()
    unscored: torch.Tensor | int = 0


class CreditPass:
    """Computes the token advantages of micro-batches with one credit method.

    The caller must run the hooks of `sources` (see [`SignalSource`]): two around loading the policy, and
    `extend_rollout` on each generation batch.

    Args:
        method: The credit method.
        context: The policy, which may be loaded later.
        cache_device: Device that keeps signals between iterations; by default the one that computes them.

    Attributes:
        sources (`dict[Signal, SignalSource]`): The source of each signal that the method requests.
        partial (`frozenset[Signal]`): The signals that are computed only for completions with an advantage, though the
            others get credit, too.

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
        self.partial: frozenset[Signal] = frozenset()
        if method.credits_zero_advantage or method.reads_batch:
            self.partial = frozenset(self.sources) - frozenset(method.signals_without_advantage())
        self._checked = False

    @functools.cached_property
    def vocab_size(self) -> int | None:
        """Number of the policy's logits; `None` for an image model's sampler."""
        return vocabulary_size(causal_model(self.context.accelerator.unwrap_model(self.context.model)))

    @functools.cached_property
    def padding_affects_output(self) -> str | None:
        """The reason padding must stay in forwards, else `None`; see [`padding_affects_output`]."""
        return padding_affects_output(self.context.model.config.get_text_config())

    @functools.cached_property
    def forward_overhead(self) -> int:
        """Fixed cost of a forward, in tokens: a small one leaves an accelerator idle, and still gathers all shards."""
        context = self.context
        overhead = 32 if context.accelerator.device.type == "cpu" else 512
        zero3 = context.is_deepspeed_enabled and context.accelerator.state.deepspeed_plugin.zero_stage == 3
        return overhead * 8 if context.is_fsdp_enabled or zero3 else overhead

    @property
    def max_forwards(self) -> int:
        """Maximum forwards into which the rows of one are split by length."""
        return 1 if self.padding_affects_output else MAX_FORWARDS

    def start(self, model: nn.Module, batch: dict[str, Any], plan: UpdatePlan) -> StartedPass:
        """Runs the signals' own forwards on the rows that need credit, without gradient and in eval mode."""
        if not plan.any_credit:
            return StartedPass(batch, plan, None, {})
        view = self._view(batch, plan)
        return StartedPass(batch, plan, view, self._own_forwards(model, view, plan))

    @staticmethod
    def _view(batch: dict[str, Any], plan: UpdatePlan) -> dict[str, Any]:
        """The rows that need credit."""
        if plan.credit_rows == list(range(len(batch["advantages"]))):
            return batch
        return _rows_or_none(batch, plan.credit_rows)

    def _own_forwards(
        self, model: nn.Module, view: dict[str, Any], plan: UpdatePlan
    ) -> dict[Signal, torch.Tensor | None]:
        """Results of each signal's own forwards for the rows of the view, (b, T, ...): zero in rows without a forward,
        `None` if no process ran any.

        Forwards are batched by length, so that rows are not padded to the micro-batch's longest.
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
            if result is not None and plan.keep and source.bytes_per_token(self.context):
                plan.cache[signal] = result.to(self.cache_device or result.device)
        return own

    def _computed(
        self, signal: Signal, view: dict[str, Any], started: StartedPass, policy: PolicyForward
    ) -> torch.Tensor:
        """(b, T) a signal for the rows of the view; 0 in those for which it is not computed."""
        source, own = self.sources[signal], started.own.get(signal)
        if signal not in self.partial:
            return source.compute(self.context, view, own, policy)
        if not started.plan.any_advantage:  # agreed by all processes, as `compute` may gather a sharded head
            return torch.zeros_like(policy.logps)
        chosen = with_advantage(view).nonzero().flatten().tolist()  # waits for the device
        index = chosen or [0]
        part = _rows_or_none(view, chosen)
        found = source.compute(self.context, part, None if own is None else own[index], policy.rows(index))
        result = found.new_zeros(policy.logps.shape)
        if chosen:
            result[chosen] = found
        return result

    @torch.no_grad()
    def finish(self, started: StartedPass, policy: PolicyForward, step: int = 0) -> CreditResult:
        """Turns the sequence advantages into token advantages, given the policy's forward of every row of the batch.

        Args:
            started: What [`start`] returned.
            policy: The policy's forward.
            step: Number of updates so far.

        Raises:
            ValueError: The method's weights break the contract of a reweighting method (checked once).
        """
        batch, plan, view = started.batch, started.plan, started.view
        if view is None:  # still logged, over zero tokens
            none = policy.logps.new_zeros(1, 1)
            inputs = CreditInputs(
                mask=none.bool(),
                policy_logps=none,
                policy_entropy=none,
                vocab_size=self.vocab_size,
                signals=dict.fromkeys(self.sources, none),
                advantages=none[:, 0],
                old_logps=None if batch.get("old_per_token_logps") is None else none,
                token_ids=none.long(),
                step=step,
                rollout=dict.fromkeys(_stage_results(batch), none),
            )
            # The loss may use the sequence advantages, unless the method has chosen rows by other means
            chosen = batch.get(HAS_CREDIT)
            return CreditResult(
                inputs,
                self.method.weights(inputs),
                token_advantages=None if chosen is None else torch.zeros_like(batch["advantages"]),
            )
        if view is not batch:
            policy = policy.rows(plan.credit_rows or [0])
        inputs = CreditInputs(
            mask=loss_mask(view),
            policy_logps=policy.logps,
            policy_entropy=policy.entropy,
            vocab_size=self.vocab_size,
            signals={signal: self._computed(signal, view, started, policy) for signal in self.sources},
            computed=dict.fromkeys(self.partial, with_advantage(view)),
            compute_dtype=self.context.forward_dtype,
            advantages=view["advantages"],
            old_logps=view.get("old_per_token_logps"),
            sampling_logps=view.get("sampling_per_token_logps"),
            token_ids=view["completion_ids"],
            turns=turns_of(view),
            step=step,
            rollout=_stage_results(view),
        )
        weights = self.method.weights(inputs)
        if not self._checked and self.method.reweights:
            self._checked = True
            check_weights(self.method, weights, inputs)
        row_advantages = every = self.method.token_advantages(view["advantages"], weights, inputs)
        if view is not batch:  # the other rows have a zero advantage or no token in the loss
            every = row_advantages.new_zeros(len(batch["advantages"]), *row_advantages.shape[1:])
            if plan.credit_rows:
                every[plan.credit_rows] = row_advantages
        if plan.scale is not None:
            every = every * plan.scale.view(-1, *[1] * (every.dim() - 1))
        ratio_weights = None
        if self.method.shapes_ratio:
            ratio_weights = weights
            if view is not batch:
                ratio_weights = weights.new_ones(len(batch["advantages"]), weights.size(1))
                if plan.credit_rows:
                    ratio_weights[plan.credit_rows] = weights
        unscored = 0
        if "sampling_per_token_logps" in view:
            unscored = (~torch.isfinite(view["sampling_per_token_logps"]) & inputs.mask).sum()
        # Copy the view: it may be the batch itself, whose advantages the trainer overwrites
        rows = tuple(plan.credit_rows or [0])
        return CreditResult(inputs, weights, row_advantages, every, ratio_weights, dict(view), rows, unscored)


def _rows_or_none(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """The given rows of a batch, or if there are none, one row with no token in the loss: processes stay in step."""
    picked = select(batch, rows or [0])
    if not rows:
        picked["completion_mask"] = torch.zeros_like(picked["completion_mask"])
    return picked


def _stage_results(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the method's rollout stage left in the batch, by name."""
    return {key.removeprefix(STAGE_PREFIX): value for key, value in batch.items() if key.startswith(STAGE_PREFIX)}


def check_weights(method: CreditMethod, weights: torch.Tensor, inputs: CreditInputs) -> None:
    """Checks the weights of a reweighting method. Completions with a NaN or infinite input are not checked.

    Raises:
        ValueError: The weights are not (B, T) without gradient, >= 0, 0 off the mask and, unless the method says
            otherwise, of mean 1 over each completion's mask.
    """
    name, mask, shape = method.name, inputs.mask, tuple(inputs.mask.shape)
    if weights is None:
        raise ValueError(f"credit method {name!r} defines none of `weights`, `term` and `token_advantages`.")
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
    off = (means - (tokens > 0).to(means)).abs().max().item() if method.mean_one else 0.0
    if not (off <= 1e-2 and (weights >= 0).all() and (weights[~mask] == 0).all()):
        if not method.mean_one:
            raise ValueError(f"credit method {name!r}: `weights` must be >= 0, and 0 off the mask.")
        raise ValueError(
            f"credit method {name!r}: `weights` must be >= 0, 0 off the mask and of mean 1 over each completion's mask; "
            f"the means are off by up to {off:.3g}. `trl_credit.mean_one` scales scores so; a method whose weights have "
            "another mean sets `mean_one = False`."
        )
