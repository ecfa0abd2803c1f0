"""Runs a method's rollout stage on a generation batch that TRL has scored.

TRL's own forward for the old log-probs is not reused: it gives neither the squared probabilities nor the hidden states that
methods need. It is also chunked inside `_get_per_token_logps_and_entropies`, covers every row with its padding, and leaves
the model in train mode.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from .._util.once import Once
from ..batching import (
    GROUPS,
    HAS_CREDIT,
    REWARDS,
    SHARED,
    STAGE_PREFIX,
    cut,
    loss_mask,
    mixes_images,
    partition,
    placeholder_row,
    select,
    token_counts,
    turns_of,
)
from ..extras.reward_guard import TurnRewards
from ..methods import CreditMethod
from ..methods.rollout import Continuations, Rollout, SegmentValues
from ..signals.context import PolicyContext
from ..signals.divergence import gathered_head
from ..signals.models import causal_model, completion_hidden_states
from ..signals.token_statistics import token_statistics


def numbered_groups(trainer: PolicyContext, count: int) -> torch.Tensor:
    """(N,) the number of the prompt of each of all processes' `count` completions: TRL's groups of consecutive rows."""
    size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    return torch.arange(count, device=trainer.accelerator.device) // size


def extend_rollout(
    trainer: PolicyContext,
    examples: list[dict],
    prompts: list,
    batch: dict[str, Any],
    rewards: Callable[[], torch.Tensor],
    groups: torch.Tensor | None = None,
) -> None:
    """Lets the signals' sources add their entries to TRL's batch, with groups and rewards for those that need them.

    Args:
        trainer: The trainer.
        examples: The dataset's rows.
        prompts: The prompts, as generated from.
        batch: TRL's batch of this process's B completions.
        rewards: Gives the (N,) rewards of all processes' completions.
        groups: (N,) number of each completion's prompt; by default, TRL's groups of consecutive rows.
    """
    sources = trainer.credit_pass.sources.values()
    if any(source.needs_groups for source in sources):
        every = rewards()
        first = trainer.accelerator.process_index * len(prompts)
        own = slice(first, first + len(prompts))
        batch[GROUPS] = (numbered_groups(trainer, len(every)) if groups is None else groups)[own]
        batch[REWARDS] = every[own]
        batch[SHARED] = Once()
    for source in sources:
        source.extend_rollout(trainer, examples, prompts, batch)
    for key in (GROUPS, REWARDS, SHARED):
        batch.pop(key, None)


@torch.no_grad()
def add_rollout_stage(
    trainer: PolicyContext,
    method: CreditMethod,
    batch: dict[str, Any],
    rewards: torch.Tensor,
    groups: torch.Tensor | None = None,
    turn_rewards: list[TurnRewards | None] | None = None,
    values: Callable[[Rollout], Mapping[Continuations, SegmentValues]] | None = None,
) -> None:
    """Adds the results of the method's rollout stage to TRL's batch, so that they are shuffled and dealt with its rows.

    If the method needs the policy that generated, that costs one forward without gradient, in eval mode, of the completions
    that it reads.

    Args:
        trainer: The trainer.
        method: The credit method.
        batch: TRL's batch of this process's B completions.
        rewards: (N,) rewards of all processes' completions.
        groups: (N,) number of each completion's prompt; by default, TRL's groups of consecutive rows.
        turn_rewards: Rewards by turn of this process's completions; `None` if no reward function gave any.
        values: Gives the values that the method asks for.
    """
    accelerator, rows = trainer.accelerator, len(batch["advantages"])
    first = accelerator.process_index * rows
    own = slice(first, first + rows)
    groups = numbered_groups(trainer, len(rewards)) if groups is None else groups
    mask = loss_mask(batch)
    rollout = Rollout(
        mask=mask,
        token_ids=batch["completion_ids"],
        advantages=batch["advantages"],
        rewards=rewards[own].masked_fill(~mask.any(-1), math.nan),
        groups=groups[own],
        turns=turns_of(batch),
        turn_rewards=_turn_rewards(trainer, batch, turn_rewards),
        turn_states=_turn_states(batch),
        gather=accelerator.gather,
        first=first,
    )
    rollout = rollout.filled(**_of_the_policy(trainer, method, rollout, batch))
    if values is not None:
        rollout = rollout.filled(values=values(rollout))
    for name, result in method.rollout_stage(rollout).items():
        if result.shape != rollout.mask.shape:
            raise ValueError(
                f"credit method {method.name!r}: `rollout_stage` must return tensors of shape {tuple(rollout.mask.shape)}, "
                f"and {name!r} has {tuple(result.shape)}."
            )
        batch[STAGE_PREFIX + name] = result
    with_credit = method.rows_with_credit(rollout)
    if with_credit is not None:
        batch[HAS_CREDIT] = with_credit


def _turn_count(batch: dict[str, Any]) -> int:
    """Most turns with a token in the loss, at least 1."""
    return int(torch.where(loss_mask(batch), turns_of(batch), 0).max()) + 1


def _turn_rewards(
    trainer: PolicyContext, batch: dict[str, Any], found: list[TurnRewards | None] | None
) -> torch.Tensor | None:
    """(B, K) rewards of turns. What a completion got as a whole is its last turn's, as are rewards of turns beyond it: a
    turn that was cut off has no token."""
    rows, device = len(batch["advantages"]), batch["advantages"].device
    anywhere = bool(trainer.accelerator.gather(torch.tensor([found is not None], device=device)).any())
    if not anywhere or "tool_mask" not in batch:
        return None
    turns, mask = turns_of(batch), loss_mask(batch)
    result = torch.full((rows, _turn_count(batch)), math.nan, dtype=torch.float32)
    last = torch.where(mask, turns, 0).amax(-1).tolist()
    for i, (rewards, end) in enumerate(zip(found or [None] * rows, last, strict=True)):
        if rewards is None:
            continue
        row = [rewards.each[k] if k < len(rewards.each) else math.nan for k in range(end + 1)]
        rest = [rewards.whole, *(value for value in rewards.each[end + 1 :] if not math.isnan(value))]
        if any(rest) or math.isnan(row[end]):
            row[end] = sum(rest) + (0.0 if math.isnan(row[end]) else row[end])
        result[i, : end + 1] = torch.tensor(row)
    return result.to(device)


def _turn_states(batch: dict[str, Any]) -> torch.Tensor | None:
    """(B, K) int64, a hash of the tokens that tools or an environment put just before each turn, of the prompt's before a
    turn with none; 0 where there is no turn."""
    if "tool_mask" not in batch:
        return None
    names = ("prompt_ids", "prompt_mask", "completion_ids", "tool_mask")
    columns = {name: batch[name].tolist() for name in names}
    in_loss = loss_mask(batch).tolist()
    result = torch.zeros(len(in_loss), _turn_count(batch), dtype=torch.long)
    for i, row in enumerate(in_loss):
        prompt = [t for t, on in zip(columns["prompt_ids"][i], columns["prompt_mask"][i], strict=True) if on]
        turn, between, before = -1, [], False
        for place, own in enumerate(columns["tool_mask"][i]):
            if not own:
                between.append(columns["completion_ids"][i][place])
            elif not before:
                turn += 1
                if row[place]:
                    result[i, turn] = _hash(between or prompt)
                between = []
            before = bool(own)
    return result.to(batch["advantages"].device)


def _hash(ids: list[int]) -> int:
    """A hash that is the same in every process, never 0."""
    digest = hashlib.blake2b(",".join(map(str, ids)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def stage_forwards(trainer: PolicyContext, wanted: torch.Tensor | None, batch: dict[str, Any]) -> list[list[int]]:
    """The rows of each forward of the rollout stage, alike in length, each of at most a micro-batch's rows. All processes
    have equally many forwards, so some lists may be empty. One collective.

    If only some rows of any process have images, all rows run, in TRL's order.

    Args:
        trainer: The trainer.
        wanted: (B,) bool, the completions that the method reads; `None` for all.
        batch: TRL's batch of this process's B completions.
    """
    credit_pass, most_rows = trainer.credit_pass, trainer.args.per_device_train_batch_size
    read = loss_mask(batch).any(-1)
    rows = np.flatnonzero((read if wanted is None else read & wanted).cpu().numpy())
    lengths = token_counts(batch)[rows]
    if credit_pass.padding_affects_output:  # all padding stays
        lengths[:] = batch["prompt_ids"].size(1), batch["completion_ids"].size(1)
    most_forwards = credit_pass.max_forwards * -(-len(rows) // most_rows)
    runs = partition(lengths, most_forwards, most_rows, credit_pass.forward_overhead)
    own = torch.tensor([[mixes_images(batch), len(runs)]], device=read.device)
    mixed, count = trainer.accelerator.gather(own).amax(0).tolist()
    if mixed:
        every = list(range(len(read)))
        return [every[start : start + most_rows] for start in every[::most_rows]]
    return [rows[run].tolist() for run in runs] + [[]] * (count - len(runs))


def _of_the_policy(
    trainer: PolicyContext, method: CreditMethod, rollout: Rollout, batch: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """What the rollout stage needs of the policy that generated, by the names of [`Rollout`]'s fields; 0 in completions that
    it does not read."""
    needs = method.rollout_needs
    if not needs:
        return {}
    wanted = method.rollout_rows(rollout)
    rows, width = batch["completion_ids"].shape
    if wanted is not None and (wanted.shape != (rows,) or wanted.dtype != torch.bool):
        raise ValueError(
            f"credit method {method.name!r}: `rollout_rows` must return a ({rows},) bool tensor, or `None` for all "
            f"completions; got {wanted.dtype} {tuple(wanted.shape)}."
        )
    found: dict[str, torch.Tensor] = {}
    for chosen in stage_forwards(trainer, wanted, batch):
        part = select(batch, chosen) if chosen else placeholder_row(batch)
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
            if chosen:
                found[name][chosen, : values[name].size(1)] = values[name]
    if not found:  # no process reads any
        found = {name: torch.zeros(rows, width, device=rollout.mask.device) for name in needs}
        if "hidden_states" in needs:
            size = trainer.model.config.get_text_config().hidden_size
            found["hidden_states"] = rollout.mask.new_zeros(rows, width, size, dtype=trainer.head_dtype)
    return found
