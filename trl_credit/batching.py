"""Plans which rows and columns of TRL's batches an update runs. Pure index computations.

A *batch* here is one that TRL buffers: tensors with one row per completion (prompts left-padded, completions
right-padded), lists with one entry per completion, and scalars.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ._trl import split_pixel_values_by_grid, unsplit_pixel_values_by_grid


# Per-token batch keys: of the prompt (left-padded), of the completion (right-padded), of both concatenated
PROMPT_KEYS = ("prompt_ids", "prompt_mask")
COMPLETION_KEYS = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
SEQUENCE_KEYS = ("token_type_ids", "mm_token_type_ids")
# Prefix of batch keys that signals add with one column per completion token
COMPLETION_PREFIX = "completion/"
# Prefix of what a method's rollout stage computed, (B, T) each
STAGE_PREFIX = COMPLETION_PREFIX + "stage/"
# (B,) what a signal's `extend_rollout` may read of the whole generation batch: numbers of the completions' prompts, unique
# over all processes, and weighted rewards. They are taken out before TRL buffers the batch; `keep_groups_together` adds the
# numbers again
GROUPS, REWARDS = "rollout/groups", "rollout/rewards"
# What several signals' `extend_rollout` share (a [`Once`]); taken out like them
SHARED = "rollout/shared"
# (B,) bool: the completions to which a method with a rollout stage gives credit
HAS_CREDIT = "rollout/has_credit"
# `pixel_values` and the keys that are meaningless without it
IMAGE_KEYS = (
    "pixel_values", "image_grid_thw", "image_position_ids", "pixel_attention_mask", "spatial_shapes", "image_sizes",
    "num_images", "num_tiles",
)  # fmt: skip

# Losses whose denominator is the micro-batch's rows, or its tokens. All others divide by the generation batch's tokens
ROW_MEAN_LOSSES = ("grpo", "sapo", "luspo", "dr_grpo")
TOKEN_MEAN_LOSSES = ("bnpo",)

# Nonzero advantages smaller than this count as rounding error: eight equal rewards of 0.7 give 6e-4
NEAR_ZERO = 1e-3
# Maximum forwards of a signal per micro-batch
MAX_FORWARDS = 8


@dataclass
class UpdatePlan:
    """The work of one micro-batch in one process.

    Args:
        credit_rows: Rows that need token credit, normally those with a nonzero advantage.
        forwards: The rows of each forward, for each signal with its own forwards: of those that need credit, the ones that
            the signal reads. All processes run equally many, so some lists may be empty.
        rows: Number of completions that this process has in this micro-batch. If 0, its one row is a placeholder.
        any_rows: Whether any process has a completion in this micro-batch.
        any_credit: Whether any process has rows that need credit.
        any_advantage: Whether any process has rows with an advantage.
        most_rows: Maximum of `rows` over processes.
        scale: (B,) factors for the token advantages that undo changes of the loss's denominators by rows left out or
            moved to other micro-batches; `None` for 1.
        share: The micro-batch's tokens relative to the mean micro-batch of its optimizer step. Weights its metrics.
        keep: Whether to keep signals that do not change between iterations after the first.
        cache: The kept forwards of those signals.
    """

    credit_rows: list[int]
    forwards: dict[Hashable, list[list[int]]]
    rows: int = 0
    any_rows: bool = True
    any_credit: bool = True
    any_advantage: bool = True
    most_rows: int = 0
    scale: torch.Tensor | None = None
    share: float = 1.0
    keep: bool = False
    cache: dict[Hashable, Any] = field(default_factory=dict)


# Rows and columns of a batch


def token_counts(batch: dict[str, Any]) -> np.ndarray:
    """(B, 2) number of tokens of each row's prompt and completion."""
    lengths = torch.stack([batch["prompt_mask"].sum(-1), batch["completion_mask"].sum(-1)], dim=1)
    return lengths.cpu().numpy()


def concatenate(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Concatenates the rows of batches with equal padding."""
    if len(batches) == 1:
        return batches[0]
    batches = [split_pixel_values_by_grid(batch) for batch in batches]
    merged = {}
    for key, value in batches[0].items():
        values = [batch[key] for batch in batches]
        if isinstance(value, list):
            merged[key] = [row for rows in values for row in rows]
        elif isinstance(value, torch.Tensor) and value.dim():
            merged[key] = torch.cat(values)
        else:
            merged[key] = value
    return unsplit_pixel_values_by_grid(merged)


def select(batch: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """A batch of the given rows, in the order of `rows`."""
    batch = split_pixel_values_by_grid(batch)
    index = torch.as_tensor(rows, dtype=torch.long)

    def pick(value: Any) -> Any:
        if isinstance(value, list):
            return [value[row] for row in rows]
        if isinstance(value, torch.Tensor) and value.dim():
            return value[index.to(value.device)]
        return value

    picked = unsplit_pixel_values_by_grid({key: pick(value) for key, value in batch.items()})
    if picked.get("num_images") is not None and not sum(picked["num_images"]):  # models reject an empty image tensor
        picked = {key: value for key, value in picked.items() if key not in IMAGE_KEYS}
    return picked


def cut_width(length: int, pad_to_multiple_of: int | None) -> int:
    """Number of columns for `length` tokens, rounded up to the multiple; at least one."""
    multiple = pad_to_multiple_of or 1
    return max(-(-int(length) // multiple), 1) * multiple


def cut(batch: dict[str, Any], pad_to_multiple_of: int | None = None, *, prompts: bool = True) -> dict[str, Any]:
    """Removes the columns that are padding in every row.

    At least two completion columns stay, because TRL reads a one-column tensor as one value per completion. Image
    tokens in a completion stay even if it is masked out of the loss (tools return images).

    Args:
        batch: The batch.
        pad_to_multiple_of: TRL's setting.
        prompts: Whether to cut the prompts' padding too.
    """
    prompt_width, completion_width = batch["prompt_ids"].size(1), batch["completion_ids"].size(1)
    longest_prompt, longest_completion = token_counts(batch).max(0)
    for key in SEQUENCE_KEYS:
        if batch.get(key) is not None:
            typed = batch[key][:, prompt_width:].any(0).nonzero()
            longest_completion = max(longest_completion, int(typed.max()) + 1 if len(typed) else 0)
    prompt = min(cut_width(longest_prompt, pad_to_multiple_of), prompt_width) if prompts else prompt_width
    completion = min(cut_width(max(longest_completion, 2), pad_to_multiple_of), completion_width)

    def cut_one(key: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() < 2:
            return value
        if key in PROMPT_KEYS:
            return value[:, prompt_width - prompt :]
        if key in SEQUENCE_KEYS:
            return value[:, prompt_width - prompt : prompt_width + completion]
        per_token = key in COMPLETION_KEYS or key.startswith(COMPLETION_PREFIX)
        return value[:, :completion] if per_token and value.size(1) > 1 else value  # TRL's ratios may be (B, 1)

    return {key: cut_one(key, value) for key, value in batch.items()}


def placeholder_row(batch: dict[str, Any]) -> dict[str, Any]:
    """The cheapest row of a batch, masked out of the loss. A process without rows runs it to stay in step.

    If the batch has images, the row has some too, so that every process runs the vision tower.
    """
    lengths = token_counts(batch).sum(-1)
    if any(batch.get("num_images") or []):
        lengths = np.where(np.asarray(batch["num_images"]) > 0, lengths, lengths.max() + 1)
    row = cut(select(batch, [int(lengths.argmin())]))
    for key in COMPLETION_KEYS:
        if key != "completion_ids" and row.get(key) is not None:
            row[key] = torch.zeros_like(row[key])
    row["advantages"] = torch.zeros_like(row["advantages"])
    if HAS_CREDIT in row:
        row[HAS_CREDIT] = torch.zeros_like(row[HAS_CREDIT])
    return row


def mixes_images(batch: dict[str, Any]) -> bool:
    """True if some but not all rows have images."""
    return batch.get("num_images") is not None and 0 < sum(map(bool, batch["num_images"])) < len(batch["num_images"])


def keep_groups_together(batches: Sequence[dict[str, Any]], window: int) -> list[dict[str, Any]] | None:
    """Deals a generation batch anew, so that each optimizer step holds whole groups of completions of one prompt.

    Groups come in the order in which TRL's shuffled rows first show them. Within a step, rows keep TRL's order, so that
    its micro-batches mix groups.

    Args:
        batches: TRL's micro-batches of a generation batch of this process, with equal padding and the key `GROUPS`.
        window: Micro-batches of an optimizer step. Divides their number, and holds whole groups.

    Returns:
        As many micro-batches, with as many rows. `None` if only some rows have images: a micro-batch could be left
        without any, and models reject an empty image tensor.
    """
    per_batch = len(batches[0][GROUPS])
    merged = concatenate(batches)
    if mixes_images(merged):
        return None
    groups = merged[GROUPS].tolist()
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    by_group = sorted(range(len(groups)), key=lambda row: places[groups[row]])  # stable
    dealt = []
    for start in range(0, len(groups), window * per_batch):
        step = sorted(by_group[start : start + window * per_batch])
        dealt += [select(merged, step[i : i + per_batch]) for i in range(0, len(step), per_batch)]
    return dealt


# Index plans


def partition(lengths: np.ndarray, groups: int, max_rows: int, overhead: float) -> list[list[int]]:
    """Groups rows so that padding each group to its longest prompt and completion costs little.

    Sorts rows by length and finds the cheapest way to cut that order into runs by dynamic programming.

    Args:
        lengths: (N, 2) tokens of each row's prompt and completion, N <= groups * max_rows.
        groups: Maximum number of groups.
        max_rows: Maximum rows per group.
        overhead: Fixed cost of a group, in tokens.

    Returns:
        At most `groups` lists of row indices, the shortest rows first.
    """
    count = len(lengths)
    if not count:
        return []
    order = np.argsort(lengths.sum(-1), kind="stable")
    prompts, completions = lengths[order].T
    max_rows = min(max_rows, count)

    # cost[size][end]: cost of a group of `size` rows that ends before row `end`
    cost = np.full((max_rows + 1, count + 1), np.inf)
    longest_prompt, longest_completion = np.zeros(count + 1), np.zeros(count + 1)
    for size in range(1, max_rows + 1):
        ends = np.arange(size, count + 1)
        longest_prompt[ends] = np.maximum(longest_prompt[ends], prompts[ends - size])
        longest_completion[ends] = np.maximum(longest_completion[ends], completions[ends - size])
        cost[size, ends] = size * (longest_prompt[ends] + longest_completion[ends]) + overhead

    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    totals, sizes = [], []
    for _ in range(min(groups, count)):
        candidates = np.full((max_rows + 1, count + 1), np.inf)
        for size in range(1, max_rows + 1):
            candidates[size, size:] = best[: count + 1 - size] + cost[size, size:]
        sizes.append(candidates.argmin(0))
        best = candidates.min(0)
        totals.append(best[count])

    runs, end = [], count
    for chosen in reversed(sizes[: int(np.argmin(totals)) + 1]):
        runs.append(order[end - chosen[end] : end].tolist())
        end -= chosen[end]
    return runs[::-1]


def row_scales(
    loss_type: str, groups: Sequence[Sequence[int]], tokens: np.ndarray, rows_per_batch: int
) -> list[np.ndarray]:
    """Factors for the rows' advantages that keep each row's gradient unchanged.

    Every TRL loss is positively homogeneous in the advantages, so scaling them undoes a change of its denominator.

    Args:
        loss_type: TRL's `loss_type`.
        groups: The rows of each new micro-batch, as indices into the concatenated old ones.
        tokens: (N,) tokens of each old row in the loss.
        rows_per_batch: Rows of each old micro-batch.

    Returns:
        For each group, a (rows,) float64 array.
    """
    if loss_type in ROW_MEAN_LOSSES:
        return [np.full(len(rows), len(rows) / rows_per_batch) for rows in groups]
    if loss_type in TOKEN_MEAN_LOSSES:
        before = tokens.reshape(-1, rows_per_batch).sum(-1).clip(min=1)
        return [
            tokens[list(rows)].sum().clip(min=1) / before[np.asarray(rows, dtype=int) // rows_per_batch]
            for rows in groups
        ]
    return [np.ones(len(rows)) for rows in groups]


# The plan of a generation batch


@dataclass(frozen=True)
class Savings:
    """The exact optimizations that an update uses.

    Args:
        skip_zero_advantage: Leave out rows whose advantage is exactly zero.
        trim_padding: Cut each micro-batch to its own longest prompt and completion.
        keep_old_prompts: Keep the prompts' padding if the batch holds log-probs from before the update.
        regroup: Regroup the rows of an optimizer step among its micro-batches by length.
    """

    skip_zero_advantage: bool = False
    trim_padding: bool = False
    keep_old_prompts: bool = False
    regroup: bool = False


def loss_mask(batch: dict[str, Any]) -> torch.Tensor:
    """(B, T) bool, the tokens in the loss. TRL's completion mask already excludes truncated completions if asked to."""
    mask = batch["completion_mask"].bool()
    return mask if "tool_mask" not in batch else mask & batch["tool_mask"].bool()


def turns_of(batch: dict[str, Any]) -> torch.Tensor | None:
    """(B, T) int, the turn of each completion token, from 0; `None` without tools. Text of a tool ends a turn."""
    if "tool_mask" not in batch:
        return None
    own = batch["tool_mask"].bool()
    before = torch.nn.functional.pad(own, (1, 0))[:, :-1]
    return ((own & ~before).long().cumsum(-1) - 1).clamp(min=0)


def with_advantage(batch: dict[str, Any]) -> torch.Tensor:
    """(B,) bool, rows with a nonzero advantage, or those to which the method's rollout stage gave credit."""
    return batch.get(HAS_CREDIT, batch["advantages"] != 0)


def _has_gradient(batch: dict[str, Any], every_row: bool = False) -> np.ndarray:
    """(B,) bool, rows with a token in the loss and, unless `every_row`, an advantage ([`with_advantage`])."""
    occupied = loss_mask(batch).any(-1)
    return (occupied if every_row else occupied & with_advantage(batch)).cpu().numpy()


def regroup_rows(
    batches: Sequence[dict[str, Any]],
    savings: Savings,
    loss_type: str,
    overhead: float,
    pad_to_multiple_of: int | None = None,
) -> list[tuple[dict[str, Any], torch.Tensor | None, bool]]:
    """Applies the optimizations to the micro-batches of one window.

    Args:
        batches: Micro-batches with equal numbers of rows, in the same optimizer step.
        savings: The optimizations.
        loss_type: TRL's `loss_type`.
        overhead: Fixed cost of a micro-batch, in tokens.
        pad_to_multiple_of: TRL's setting.

    Returns:
        Equally many micro-batches, after regrouping those without rows first, each with its rows' scales (`None` for 1)
        and whether it has rows. A micro-batch without rows is a one-row placeholder with no token in the loss.
    """
    if not (savings.skip_zero_advantage or savings.trim_padding or savings.regroup):
        return [(batch, None, True) for batch in batches]
    merged, per_batch = concatenate(batches), len(batches[0]["advantages"])
    rows = np.arange(len(merged["advantages"]))
    kept = rows[_has_gradient(merged)] if savings.skip_zero_advantage else rows
    if savings.regroup and len(batches) > 1:
        runs = partition(token_counts(merged)[kept], len(batches), per_batch, overhead)
        groups = [[]] * (len(batches) - len(runs)) + [kept[run].tolist() for run in runs]
    else:
        groups = [kept[kept // per_batch == i].tolist() for i in range(len(batches))]
    regrouped = []
    tokens = loss_mask(merged).sum(-1).cpu().numpy()
    for group, scale in zip(groups, row_scales(loss_type, groups, tokens, per_batch), strict=True):
        if not group:
            regrouped.append((placeholder_row(merged), None, False))
            continue
        batch = merged if group == rows.tolist() else select(merged, group)
        if savings.trim_padding:
            prompts = not (savings.keep_old_prompts and batch.get("old_per_token_logps") is not None)
            batch = cut(batch, pad_to_multiple_of, prompts=prompts)
        scale = None if (scale == 1).all() else torch.as_tensor(scale).to(batch["advantages"])
        regrouped.append((batch, scale, True))
    return regrouped


PLAN = "credit_plan"


@dataclass(frozen=True)
class PlanSettings:
    """What a plan of updates depends on, besides the batches.

    Args:
        savings: The optimizations to use.
        every_row: Whether rows without an advantage need credit too ([`CreditMethod.credits_zero_advantage`]).
        loss_type: TRL's `loss_type`.
        window: Micro-batches of one optimizer step, among which rows may be regrouped.
        overhead: Fixed cost of a micro-batch, in tokens.
        forward_overhead: Fixed cost of a signal's forward, in tokens.
        max_forwards: Maximum forwards of a signal per micro-batch.
        pad_to_multiple_of: TRL's setting.
        kept_bytes_per_token: Bytes per token of signals kept between iterations; 0 if none is kept.
        budget_bytes: Bytes that kept signals may use per process.
        partial: Signals that run only for rows with an advantage, though the others need credit too.
        images: Whether the policy takes images.
    """

    savings: Savings
    every_row: bool
    loss_type: str
    window: int
    overhead: float
    forward_overhead: float
    max_forwards: int = MAX_FORWARDS
    pad_to_multiple_of: int | None = None
    kept_bytes_per_token: int = 0
    budget_bytes: float = 0.0
    partial: frozenset[Hashable] = frozenset()
    images: bool = False


def plan_updates(
    batches: Sequence[dict[str, Any]],
    signal_lengths: dict[Hashable, Callable[[dict[str, Any]], np.ndarray]],
    gather: Callable[[torch.Tensor], torch.Tensor],
    settings: PlanSettings,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Plans the updates of a generation batch. One collective makes all processes agree on the plan; if the policy takes
    images, one before it makes them agree whether some rows have none.

    Args:
        batches: TRL's micro-batches of this process.
        signal_lengths: For each signal with its own forwards, a function that returns the (B, 2) prompt and completion
            tokens it reads for each row, none for a row that it does not forward.
        gather: Concatenates a tensor over the processes.
        settings: The same in every process.

    If only some rows of any process have images, no process leaves out or regroups rows: one with a group without images
    would not run the vision tower, and with a sharded tower the others would wait for it.

    Returns:
        The micro-batches to run, each with an [`UpdatePlan`] under the key `PLAN`, and the metrics of the plan.
    """
    savings, window, every_row = settings.savings, settings.window, settings.every_row
    advantages = torch.cat([batch["advantages"] for batch in batches])
    near_zero = (advantages != 0) & (advantages.abs() < NEAR_ZERO)
    teaching = sum(int(_has_gradient(batch, every_row).sum()) for batch in batches)
    own_mixed = torch.tensor([any(map(mixes_images, batches))], device=advantages.device)
    mixed = settings.images and bool(gather(own_mixed).any())
    if mixed:
        savings = replace(savings, skip_zero_advantage=False, regroup=False)
    regrouped = []
    for start in range(0, len(batches), window):
        regrouped += regroup_rows(
            batches[start : start + window],
            savings,
            settings.loss_type,
            settings.overhead,
            settings.pad_to_multiple_of,
        )

    plans, numbers = [], []
    for batch, scale, has_rows in regrouped:
        credit_rows = np.flatnonzero(_has_gradient(batch, every_row)) if has_rows else np.arange(0)
        if mixed:  # every row runs, so that every process runs the vision tower
            credit_rows = np.arange(len(batch["advantages"]))
        forwards = {}
        for signal, lengths_of in signal_lengths.items():
            lengths = lengths_of(batch)
            needed = lengths.any(-1)
            if signal in settings.partial:
                needed &= _has_gradient(batch)
            if mixed:  # every process runs the vision tower
                needed |= np.asarray(batch.get("num_images") or [0] * len(needed)) > 0
            run_rows = credit_rows[needed[credit_rows]]
            most_forwards = 1 if mixed else settings.max_forwards
            runs = partition(lengths[run_rows], most_forwards, max(len(run_rows), 1), settings.forward_overhead)
            forwards[signal] = [run_rows[run].tolist() for run in runs]
        plans.append(UpdatePlan(credit_rows.tolist(), forwards, rows=len(batch["advantages"]) * has_rows, scale=scale))
        tokens = int(loss_mask(batch).sum()) if has_rows else 0
        size = len(credit_rows) * batch["completion_ids"].size(1) * settings.kept_bytes_per_token
        nonzero = int(_has_gradient(batch).sum()) if has_rows else 0
        counts = map(len, forwards.values())
        numbers.append([plans[-1].rows, tokens, len(credit_rows), size, nonzero, *counts])

    local = [len(advantages), teaching, int(near_zero.sum()), *(number for row in numbers for number in row)]
    gathered = gather(torch.tensor([local], device=advantages.device)).cpu().numpy()
    rows, teaching, near_zero = gathered[:, :3].sum(0).tolist()
    gathered = gathered[:, 3:].reshape(len(gathered), len(plans), -1)
    most, tokens = gathered.max(0), gathered[:, :, 1].sum(0)
    windows = tokens.reshape(-1, window), most[:, 0].astype(bool).reshape(-1, window)
    mean_tokens = (windows[0].sum(1) / windows[1].sum(1).clip(min=1)).repeat(window)
    within_budget = np.cumsum(most[:, 3]) <= settings.budget_bytes
    for i, plan in enumerate(plans):
        plan.most_rows, plan.any_rows, plan.any_credit = int(most[i, 0]), bool(most[i, 0]), bool(most[i, 2])
        plan.any_advantage = bool(most[i, 4])
        plan.keep = bool(settings.kept_bytes_per_token and within_budget[i])
        if (savings.skip_zero_advantage or savings.regroup) and mean_tokens[i]:
            plan.share = float(tokens[i] / mean_tokens[i])
        for signal, count in zip(plan.forwards, most[i, 5:], strict=True):
            plan.forwards[signal] += [[]] * int(count - len(plan.forwards[signal]))
    metrics = {"credit/near_zero_advantages": float(near_zero)}
    skips = signal_lengths or savings.skip_zero_advantage
    metrics["credit/skipped_fraction"] = 1 - teaching / rows if skips else 0.0
    if settings.kept_bytes_per_token:
        metrics["credit/kept_fraction"] = float(np.mean([plan.keep for plan in plans]))
    return [{**batch, PLAN: plan} for (batch, _, _), plan in zip(regrouped, plans, strict=True)], metrics


# Names of plan fields in checkpoints, unchanged since release 0.1
_SAVED_AS = {"any_rows": "live", "any_credit": "credited"}


def encode_plan(plan: UpdatePlan) -> dict[str, Any]:
    """Encodes a plan for a checkpoint."""
    values = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    values["forwards"] = list(plan.forwards.values())
    del values["cache"]  # recomputed after a resume
    return {_SAVED_AS.get(name, name): value for name, value in values.items()}


def decode_plan(values: dict[str, Any], signals: list) -> UpdatePlan:
    """Decodes a plan from a checkpoint.

    Args:
        values: The result of [`encode_plan`].
        signals: The signals with their own forwards, in the order they had when the plan was encoded.
    """
    names = {saved: name for name, saved in _SAVED_AS.items()}
    values = {names.get(name, name): value for name, value in values.items()}
    return UpdatePlan(**values | {"forwards": dict(zip(signals, values["forwards"], strict=True))})
