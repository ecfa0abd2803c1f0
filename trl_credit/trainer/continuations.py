"""Continues completions from within with TRL's own generation, and rewards what comes out: values by sampling.

A generation batch's beginnings are gathered over the processes, equal ones of a group once, and dealt evenly, so that every
process generates and scores equally often. A continuation may be as long as what its completion had left. The results are
the same in all processes.

The random numbers are the continuations' own: rollouts draw the same ones as in a run without continuations, and a resumed
run draws the same continuations. (vLLM has its own generator, which both share.)
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOConfig

from .._util.replaced import replaced
from .._util.tokens import token_pieces
from ..extras.groups import total_rewards
from ..methods import CreditMethod
from ..methods.rollout import Continuations, Rollout, SegmentValues
from ..signals.second_prompt import content_parts
from ..values.steps import segment_ends


if TYPE_CHECKING:
    from .grpo import CreditGRPOTrainer


# What continues a completion in its own way, and cannot be asked to do so from within
_OWN_WAYS = {
    "tools": "tools would have to be called again, from the state in which they were then",
    "environment_factory": "an environment cannot be put back into the state in which it was then",
    "rollout_func": "a rollout function generates from prompts, not from within a completion",
}
# Of a call to an engine that batches by itself, the largest budget in units of the smallest. An engine takes one limit for
# all rows of a call, and its last rows run alone: fewer calls have fewer ends, narrower ones fewer tokens beyond a budget
_BUDGETS = 2.0
# Keys of `generation_kwargs` that rule a completion as a whole
_WHOLE = ("structured_outputs", "min_tokens", "min_new_tokens")


def check_continuations(method: CreditMethod, arguments: dict[str, Any], args: GRPOConfig) -> None:
    """Raises `ValueError` if a method needs continuations and this run's completions cannot be continued.

    Args:
        method: The credit method.
        arguments: The arguments of the trainer's `__init__`.
        args: The training arguments.
    """
    ruled = [f"generation_kwargs[{name!r}]" for name in _WHOLE if name in (args.generation_kwargs or {})]
    if args.use_vllm and args.vllm_structured_outputs_regex is not None:
        ruled.append("vllm_structured_outputs_regex")
    for part in method.components().values():
        if not part.continuations():
            continue
        for name, reason in _OWN_WAYS.items():
            if arguments.get(name):
                raise ValueError(
                    f"credit method {part.name!r} continues completions from within, which `{name}` does not allow: "
                    f"{reason}. Remove `{name}`, or use another method."
                )
        if _has_images(arguments.get("train_dataset")):
            raise ValueError(
                f"credit method {part.name!r} continues completions from within, and those of prompts with images cannot be "
                "continued yet. Use data without images, or another credit method."
            )
        for name in ruled:
            raise ValueError(
                f"credit method {part.name!r} continues completions from within, and there `{name}` would apply as if a "
                "completion began anew. Remove it, or use another method."
            )


def _has_images(dataset: Any) -> bool:
    """Whether the data has a column of images, or images in its first prompt."""
    if {"image", "images"} & set(getattr(dataset, "column_names", None) or ()):
        return True
    if not isinstance(dataset, Dataset) or not len(dataset):
        return False
    return any(part.get("type") == "image" for part in content_parts(dataset[0].get("prompt") or ""))


@dataclass(frozen=True)
class _Beginnings:
    """The different beginnings of all processes' completions.

    Args:
        groups: The group of each.
        prompts: Token ids of its prompt.
        written: Token ids of its completion so far.
        places: By group and digest of the tokens so far, the place of a beginning in these lists.
    """

    groups: list[int]
    prompts: list[list[int]]
    written: list[list[int]]
    places: dict[tuple[int, bytes], int]


def _digest(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()


def different_beginnings(completions: Sequence[tuple[int, list[int], list[int], list[int]]]) -> _Beginnings:
    """The beginnings of completions, equal ones of a group once.

    Args:
        completions: The group, the prompt's ids, the completion's ids and the starts of its segments, for each.
    """
    found = _Beginnings([], [], [], {})
    for group, prompt, ids, starts in completions:
        for start in starts:
            key = (group, _digest(ids[:start]))
            if key not in found.places:
                found.places[key] = len(found.groups)
                found.groups.append(group)
                found.prompts.append(prompt)
                found.written.append(ids[:start])
    return found


def planned_calls(
    lengths: Sequence[int],
    budgets: Sequence[int],
    most: int | None = None,
    context: int | None = None,
    within: float = math.inf,
) -> list[list[int]]:
    """Deals rows to calls of the generation, so that those of a call have similar budgets.

    Args:
        lengths: Tokens from which each row is continued.
        budgets: Tokens that it may get. All rows of a call run as long as the largest.
        most: Rows of a call at most; `None` for any number.
        context: Tokens that the model's positions allow. No row is run beyond them, unless its own budget goes there.
        within: Largest budget of a call in units of its smallest.
    """
    limit = math.inf if context is None else max(context, *map(sum, zip(lengths, budgets, strict=True)), 0)
    calls: list[list[int]] = []
    longest = budget = 0
    for row in sorted(range(len(lengths)), key=lambda i: (-budgets[i], lengths[i])):
        longest, budget = max(longest, lengths[row]), max(budget, budgets[row])
        full = not calls or len(calls[-1]) == most
        if full or longest + budget > limit or budget > within * budgets[row]:
            calls.append([])
            longest, budget = lengths[row], budgets[row]
        calls[-1].append(row)
    return calls


def continued_values(
    trainer: CreditGRPOTrainer,
    requests: Sequence[Continuations],
    rollout: Rollout,
    examples: list[dict],
    prompts: list,
    batch: dict[str, Any],
) -> dict[Continuations, SegmentValues]:
    """What methods ask for of a generation batch.

    Logs, for all requests together: `credit/continuations` (for each completion), `credit/continuation_tokens` (for each
    token of the completions), `credit/continuation_seconds` and `credit/unrewarded_continuations`.

    Args:
        trainer: The trainer.
        requests: What is asked for.
        rollout: This process's completions.
        examples: Their dataset rows.
        prompts: Their prompts, as generated from.
        batch: TRL's batch of them.

    Raises:
        ValueError: Prompts have images.
    """
    if batch.get("num_images") is not None:
        raise ValueError(
            "Completions of prompts with images cannot be continued from within yet. Use data without images, or another "
            "credit method."
        )
    started = time.perf_counter()
    sampler = _Sampler(trainer, rollout, examples, prompts)
    with _own_random_numbers(trainer):
        found = {request: _values(sampler, request, rollout, batch) for request in requests}
    metrics = trainer._metrics["train"]
    if "num_tokens" in metrics:
        metrics["num_tokens"] = [trainer.state.num_input_tokens_seen]
    counts = torch.tensor([len(prompts), sampler.tokens], device=rollout.mask.device)
    completions, tokens = rollout.sum(counts).tolist()
    generated = metrics["completions/mean_length"][-1] * completions
    metrics["credit/continuations"].append(sampler.count / completions)
    metrics["credit/continuation_tokens"].append(tokens / max(generated, 1.0))
    metrics["credit/unrewarded_continuations"].append(float(sampler.unrewarded))
    metrics["credit/continuation_seconds"].append(time.perf_counter() - started)
    return found


def _values(sampler: _Sampler, request: Continuations, rollout: Rollout, batch: dict[str, Any]) -> SegmentValues:
    tokenizer, rewards, mask = sampler.trainer.tokenizer, rollout.rewards, rollout.mask
    credited = (~torch.isnan(rewards) & mask.any(-1)).tolist()
    own: dict[int, tuple[int, list[int], list[int], list[int]]] = {}
    ends: dict[int, list[int]] = {}
    for row in (row for row, yes in enumerate(credited) if yes):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        ids = rollout.token_ids[row][mask[row]].tolist()
        # A number of tokens asks for no texts
        pieces = [""] * len(ids) if isinstance(request.every, int) else token_pieces(tokenizer, ids)
        ends[row] = segment_ends(pieces, request.every)
        own[row] = (int(rollout.groups[row]), prompt, ids, [0, *ends[row][:-1]])
    beginnings = different_beginnings(gather_object(list(own.values())))
    means = sampler.rewards(beginnings, request.count).nanmean(-1).to(mask.device, torch.float32)
    most = max(map(len, ends.values()), default=1)
    values = torch.full((len(mask), most + 1), math.nan, device=mask.device)
    segments = torch.zeros_like(mask, dtype=torch.long)
    for row, (group, _, ids, starts) in own.items():
        places = [beginnings.places[group, _digest(ids[:start])] for start in starts]
        values[row, : len(places)] = means[places]
        values[row, len(places)] = rewards[row]
        lengths = torch.tensor(ends[row]).diff(prepend=torch.zeros(1, dtype=torch.long))
        segments[row, mask[row]] = torch.arange(len(lengths)).repeat_interleave(lengths).to(mask.device)
    return SegmentValues(segments, values)


class _Sampler:
    """Samples and rewards continuations, in step with the other processes.

    Attributes:
        trainer: The trainer.
        count: Continuations sampled, by all processes.
        tokens: Their tokens, of this process.
        unrewarded: How many have no reward, of all processes.
    """

    def __init__(self, trainer: CreditGRPOTrainer, rollout: Rollout, examples: list[dict], prompts: list):
        self.trainer = trainer
        self.count = self.tokens = self.unrewarded = 0
        own = {group: i for i, group in reversed(list(enumerate(rollout.groups.tolist())))}
        self._sources = dict(gather_object([(group, (examples[i], prompts[i])) for group, i in own.items()]))
        self._rows = len(prompts)

    def rewards(self, beginnings: _Beginnings, count: int) -> torch.Tensor:
        """(U, count) rewards of continuations of all U beginnings, the same in all processes; NaN for none."""
        trainer = self.trainer
        processes, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        settings, name = _length_setting(trainer)
        items = [i for i in range(len(beginnings.groups)) for _ in range(count)]
        written = beginnings.written
        lengths = [len(beginnings.prompts[i]) + len(written[i]) for i in items]
        budgets = [max(getattr(settings, name) - len(written[i]), 1) for i in items]
        if trainer.use_vllm or trainer.use_transformers_continuous_batching:
            calls = planned_calls(lengths, budgets, within=_BUDGETS)  # the engine batches by itself
        else:
            calls = planned_calls(lengths, budgets, self._rows * processes, trainer.context_length)
        found = torch.full((len(items),), math.nan, dtype=torch.float64)
        for call in calls:
            each = -(-len(call) // processes)
            # Repeated at the end, so that every process has equally many
            mine = [call[(place * processes + rank) % len(call)] for place in range(each)]
            part = [items[item] for item in mine]
            # Equal in all processes: engines that span several of them need one limit
            longest = max(budgets[item] for item in call)
            totals, tokens = self._continued(beginnings, part, [budgets[item] for item in mine], longest)
            in_order = totals.view(processes, each).T.flatten()[: len(call)]
            found[call] = in_order.cpu().double()
            self.tokens += sum(number for place, number in enumerate(tokens) if place * processes + rank < len(call))
        self.count += len(items)
        self.unrewarded += int(found.isnan().sum())
        return found.view(-1, count)

    def _continued(
        self, beginnings: _Beginnings, part: list[int], budgets: list[int], longest: int
    ) -> tuple[torch.Tensor, list[int]]:
        """Rewards of one continuation of each of this process's beginnings, gathered over the processes, and the tokens
        that each of this process's continuations has: at most its budget, of which `longest` is the largest of all
        processes."""
        trainer = self.trainer
        settings, name = _length_setting(trainer)
        prompt_ids = [beginnings.prompts[i] for i in part]
        written = [beginnings.written[i] for i in part]
        rows, prompts = zip(*(self._sources[beginnings.groups[i]] for i in part), strict=True)
        generate = trainer._generate_single_turn

        def continue_written(*_, **__):
            starts = [prompt + begun for prompt, begun in zip(prompt_ids, written, strict=True)]
            with replaced(settings, **{name: longest}):
                new, _ = generate(starts, None, {}, 1)
            return [w + n[:b] for w, n, b in zip(written, new, budgets, strict=True)], None

        # TRL generates, decodes and parses in one method. This takes the place of what it generates with, and keeps what it
        # logs apart. Remove it once TRL has a method that continues
        with replaced(
            trainer,
            _tokenize_prompts=lambda *_: (prompt_ids, None, {}),
            _generate_single_turn=continue_written,
            _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
            _turn_rewards=None,
            _rollout_prompts=None,
        ):
            _, ids, _, completions, *_ = trainer._generate(list(prompts))
            # In parts of a rollout's size: `reward_timeout` is for a call
            parts = [slice(start, start + self._rows) for start in range(0, len(part), self._rows)]
            rewards = [
                trainer._calculate_rewards(list(rows[p]), list(prompts[p]), completions[p], ids[p]) for p in parts
            ]
            # What reward functions logged. The rollout's own is in TRL's logs by now
            trainer._pending_metrics.clear()
            trainer._pending_extra_logs.clear()
        processes = trainer.accelerator.num_processes
        rewards = torch.cat([r.view(processes, -1, r.size(-1)) for r in rewards], dim=1).flatten(0, 1)
        return total_rewards(rewards, trainer.reward_weights), [
            len(i) - len(w) for i, w in zip(ids, written, strict=True)
        ]


def _length_setting(trainer: CreditGRPOTrainer) -> tuple[Any, str]:
    """The object and its attribute that say how many tokens TRL generates at most."""
    if trainer.use_vllm:
        return trainer.vllm_generation, "max_completion_length"
    return trainer.generation_config, "max_new_tokens"


@contextlib.contextmanager
def _own_random_numbers(trainer: CreditGRPOTrainer) -> Iterator[None]:
    """Random numbers that depend on the run's seed, the generation batch and the process, and leave the others alone."""
    device = trainer.accelerator.device
    several = device.type not in ("cpu", "mps")
    devices = range(torch.get_device_module(device).device_count()) if several else []
    key = f"continuations/{trainer.args.seed}/{trainer._step}/{trainer.accelerator.process_index}"
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest())
    with (
        torch.random.fork_rng(devices, device_type=device.type if several else None),
        _own_mps_numbers() if device.type == "mps" else contextlib.nullcontext(),
    ):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _own_mps_numbers() -> Iterator[None]:
    """What `fork_rng` does for other devices: it asks each for the state of a numbered one, and MPS has but one."""
    state = torch.mps.get_rng_state()
    try:
        yield
    finally:
        torch.mps.set_rng_state(state)
