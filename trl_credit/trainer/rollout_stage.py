"""Runs a method's rollout stage on a generation batch that TRL has scored."""

from __future__ import annotations

from typing import Any

import torch

from ..batching import HAS_CREDIT, STAGE_PREFIX, cut, loss_mask, select, turns_of
from ..methods import CreditMethod
from ..methods.rollout import Rollout
from ..signals.context import PolicyContext
from ..signals.divergence import gathered_head
from ..signals.models import causal_model, completion_hidden_states
from ..signals.token_statistics import token_statistics


def prompt_groups(trainer: PolicyContext, rows: int, device: torch.device) -> torch.Tensor:
    """(N,) number of the prompt of each completion of all processes: TRL's groups are consecutive rows.

    Args:
        trainer: The trainer.
        rows: Completions of each process.
        device: Device of the result.
    """
    size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    return torch.arange(rows * trainer.accelerator.num_processes, device=device) // size


@torch.no_grad()
def add_rollout_stage(
    trainer: PolicyContext,
    method: CreditMethod,
    batch: dict[str, Any],
    rewards: torch.Tensor,
    groups: torch.Tensor | None = None,
) -> None:
    """Adds the results of the method's rollout stage to TRL's batch, so that they are shuffled and dealt with its rows.

    If the method needs the policy that generated, that costs one forward without gradient, in eval mode.

    Args:
        trainer: The trainer.
        method: The credit method.
        batch: TRL's batch of this process's B completions.
        rewards: (N,) rewards of all processes' completions.
        groups: (N,) number of each completion's prompt; by default, TRL's groups of consecutive rows.
    """
    accelerator, rows = trainer.accelerator, len(batch["advantages"])
    first = accelerator.process_index * rows
    own = slice(first, first + rows)
    if groups is None:
        groups = prompt_groups(trainer, rows, rewards.device)
    rollout = Rollout(
        mask=loss_mask(batch),
        token_ids=batch["completion_ids"],
        advantages=batch["advantages"],
        rewards=rewards[own],
        groups=groups[own],
        turns=turns_of(batch),
        gather=accelerator.gather,
        first=first,
        **_of_the_policy(trainer, method.rollout_needs, batch),
    )
    for name, values in method.rollout_stage(rollout).items():
        if values.shape != rollout.mask.shape:
            raise ValueError(
                f"credit method {method.name!r}: `rollout_stage` must return tensors of shape {tuple(rollout.mask.shape)}, "
                f"and {name!r} has {tuple(values.shape)}."
            )
        batch[STAGE_PREFIX + name] = values
    with_credit = method.rows_with_credit(rollout)
    if with_credit is not None:
        batch[HAS_CREDIT] = with_credit


def _of_the_policy(trainer: PolicyContext, needs: tuple[str, ...], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the rollout stage needs of the policy that generated, by the names of [`Rollout`]'s fields."""
    if not needs:
        return {}
    rows, width = batch["completion_ids"].shape
    found: dict[str, torch.Tensor] = {}
    for start in range(0, rows, trainer.args.per_device_train_batch_size):
        # Every process has equally many rows, so all run equally many forwards
        chosen = list(range(start, min(start + trainer.args.per_device_train_batch_size, rows)))
        part = select(batch, chosen)
        part = part if trainer.credit_pass.padding_affects_output else cut(part)
        states = completion_hidden_states(trainer, trainer.model, trainer.policy_hidden_states, part)
        values = {"hidden_states": states.to(trainer.head_dtype)} if "hidden_states" in needs else {}
        statistics = [name for name in needs if name != "hidden_states"]
        if statistics:
            with gathered_head(causal_model(trainer.accelerator.unwrap_model(trainer.model))) as head:
                values |= token_statistics(
                    states, head, part["completion_ids"], loss_mask(part), trainer.temperature, trainer.head_dtype
                )
        for name in needs:
            if name not in found:
                found[name] = values[name].new_zeros(rows, width, *values[name].shape[2:])
            found[name][chosen, : values[name].size(1)] = values[name]
    return found
