"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): replaces groups without signal by groups of fresh prompts.

TRL generates, scores and normalises a generation batch in one method. The rounds run inside it, right after it
generates: the first round's completions are scored there and groups outside the range are replaced in place. TRL then
pads, normalises and logs the resulting batch as if it had generated nothing else.
"""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from trl.trainer.utils import get_callable_name

from .._util.replaced import replaced
from .._util.text import nearest
from .groups import KEPT, TOO_EASY, TOO_HARD, UNSCORED, classify_groups, total_rewards
from .prompt_stream import PromptStream
from .reward_guard import distinct_names


logger = logging.getLogger(__name__)

DEFAULT_MAX_ROUNDS = 10


@dataclass
class Rollout:
    """One completion as TRL generated it, plus what scoring added."""

    prompt: Any
    prompt_ids: list[int]
    completion_ids: list[int]
    tool_mask: list[int] | None
    completion: Any
    logprobs: list[float] | None
    images: list | None
    tool_images: list
    environment: str | None
    added: dict[str, Any]  # fields that a rollout function added to the dataset row
    turn_rewards: Any = None  # rewards by turn, see `reward_guard.TurnRewards`
    logged: dict[str, Any] = field(default_factory=dict)  # completions-table columns, by reward functions

    @property
    def generated_tokens(self) -> int:
        return len(self.completion_ids) if self.tool_mask is None else sum(self.tool_mask)


class _RoundScored(Exception):  # noqa: N818 (no error)
    """Exits TRL's rollout of a further round once its completions are scored; the rest is not needed.

    TRL generates, scores and computes log-probs in one method, and only an exception can leave it midway. Remove this
    once TRL has a separate method for the first half (`test_the_rollout_is_prepared_before_it_is_generated`).
    """

    def __init__(self, rollouts: list[Rollout], rewards: torch.Tensor):
        super().__init__("the round is over")
        self.rollouts, self.rewards = rollouts, rewards


class DynamicSamplingMixin:
    """Dynamic sampling in TRL's rollout, for every credit method and generation backend.

    Prompts come from a [`PromptStream`] instead of the dataloader, which still counts the steps. A round draws one
    prompt per group to replace, rounded up so that every process generates equally many completions, whichever process
    owns the groups. Groups may span processes. All processes see all rewards, so they agree on the rounds. Only groups
    with images replace groups with images.

    Logged once per generation batch: `dynamic_sampling/rounds` (including the first), `prompts_drawn`, `kept` (drawn,
    in the range and in the batch), `too_easy`, `too_hard` and `unscored` (drawn but outside the range), `surplus` (in
    the range but not needed), `left` (groups of the batch that are still outside the range after the last round),
    `discarded_tokens` (generated but not used), `drawn_reward` (mean over everything drawn; TRL's `reward` covers only
    the batch, without the replaced easy and hard groups) and `passes` over the data.

    Everything else TRL logs describes the final batch, except: `num_tokens` counts every generated token; scalars that
    reward functions log are averaged over all rounds; tool calls of a batch with replacements are counted from its
    messages.
    """

    _prompt_stream: PromptStream | None = None
    _warned = False
    _drawn: list | None = None  # prompts of the generation batch in progress
    _round_inputs: list[dict] | None = None  # dataset rows of the further round in progress
    _batch_inputs: list[dict] | None = None  # dataset rows of the generation batch

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_reward_name(self.args, self.reward_func_names)

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        if getattr(self.args, "dynamic_sampling", False):
            dataset = self.train_dataset
            if isinstance(dataset, Dataset):
                dataset = self._remove_unused_columns(dataset, description="training")
            self._prompt_stream = PromptStream(
                dataset,
                batch_size=self.args.generation_batch_size // self.num_generations,
                shuffle=self.shuffle_dataset,
                seed=self.args.seed,
            )
        return loader

    def _generate_and_score_completions(self, inputs):
        if not getattr(self.args, "dynamic_sampling", False) or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        if self._prompt_stream is None:
            raise ValueError(
                f"`dynamic_sampling` needs the prompts of TRL's dataloader, but {type(self).__name__} overrides "
                "`get_train_dataloader` without calling `super()`. Call it, or set `dynamic_sampling=False`."
            )
        self._drawn = self._prompt_stream.draw(self.args.generation_batch_size // self.num_generations)
        inputs[:] = self._local_examples(self._drawn)
        self._batch_inputs = inputs
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self._drawn = self._batch_inputs = None
            vars(self).pop("_calculate_rewards", None)

    def _metrics_of_generation(self) -> dict[str, list[float]]:
        """The metrics that TRL logs during generation."""
        metrics = self._metrics["train"].items()
        return {name: list(values) for name, values in metrics if name.startswith(("completions/", "tools/"))}

    def _local_examples(self, drawn: list) -> list[dict]:
        """This process's rows for the drawn prompts' groups."""
        rows = len(drawn) * self.num_generations // self.accelerator.num_processes
        first = rows * self.accelerator.process_index
        return [self._prompt_stream.example(drawn[i // self.num_generations]) for i in range(first, first + rows)]

    def _generate(self, prompts: list):
        if self._drawn is None:
            return super()._generate(prompts)
        if self._round_inputs is not None:
            raise _RoundScored(*self._scored(self._round_inputs, prompts, super()._generate(prompts)))
        inputs, before = self._batch_inputs, self._metrics_of_generation()
        generated = super()._generate(prompts)
        first = self._metrics_of_generation()
        rollouts, rewards = self._scored(inputs, prompts, generated)
        environments = getattr(self, "_batch_environments", None)
        groups, rewards = self._further_rounds(rollouts, rewards)
        # TRL asks for the rewards next. Set on the instance: a subclass's override would shape them a second time
        # (test_rewards_that_a_subclass_makes)
        self._calculate_rewards = lambda *_: rewards
        start = self.accelerator.process_index * len(rollouts)
        for i in range(len(rollouts)):
            group, member = divmod(start + i, self.num_generations)
            if group not in groups:
                continue
            prompt, others = groups[group]
            rollouts[i] = others[member]
            prompts[i], inputs[i] = rollouts[i].prompt, self._prompt_stream.example(prompt) | rollouts[i].added
            if environments:
                environments[i] = rollouts[i].environment
        self._batch_environments = environments
        turn_rewards = [rollout.turn_rewards for rollout in rollouts]
        self._turn_rewards = turn_rewards if any(turn_rewards) else None
        for column in {column for rollout in rollouts for column in rollout.logged}:
            self._pending_extra_logs[column] = [rollout.logged.get(column) for rollout in rollouts]
        for name in self._metrics_of_generation():
            self._metrics["train"][name] = (before if groups else first).get(name, [])
        if not groups:
            return generated
        final = self._as_generated(rollouts)
        self._log_generated(prompts, final)
        return final

    def _extra_state(self):
        state = super()._extra_state()
        return state if self._prompt_stream is None else state | {"prompts": self._prompt_stream.state_dict()}

    def _load_extra_state(self, state):
        super()._load_extra_state(state)
        if self._prompt_stream is not None and "prompts" in state:
            self._prompt_stream.load_state_dict(state["prompts"])

    # One round

    def _scored(self, inputs: list[dict], prompts: list, generated: tuple) -> tuple[list[Rollout], torch.Tensor]:
        """This process's scored completions, and the (N, F) rewards of all processes' completions."""
        prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images = generated
        added = [
            {
                k: v[i] if isinstance(v, list) else v
                for k, v in extra_fields.items()
                if not isinstance(v, list) or i < len(v)
            }
            for i in range(len(prompts))
        ]
        for row, more in zip(inputs, added, strict=True):
            row.update(more)  # as TRL does, for the reward functions
        if images is None and self.rollout_func is not None:
            images = [_images(prompt) for prompt in prompts]
        rewards = self._calculate_rewards(inputs, prompts, completions, completion_ids)
        none = [None] * len(prompts)
        columns = (
            prompts,
            prompt_ids,
            completion_ids,
            tool_mask or none,
            completions,
            logprobs or none,
            images or none,
            tool_images or [[] for _ in prompts],
            getattr(self, "_batch_environments", None) or none,
            added,
            getattr(self, "_turn_rewards", None) or none,
        )
        rollouts = [Rollout(*row) for row in zip(*columns, strict=True)]
        for column, values in self._pending_extra_logs.items():
            if len(values) % len(rollouts):
                raise ValueError(
                    f"A reward function logged {len(values)} values in the column {column!r} for {len(rollouts)} "
                    "completions: `log_extra` takes one for each."
                )
            # If several functions log the same column, the last one wins, as in TRL
            for rollout, value in zip(rollouts, values[-len(rollouts) :], strict=True):
                rollout.logged[column] = value
        self._pending_extra_logs.clear()
        return rollouts, rewards

    def _further_rounds(
        self, first: list[Rollout], rewards: torch.Tensor
    ) -> tuple[dict[int, tuple[Any, list[Rollout]]], torch.Tensor]:
        """Runs the rounds after the first and logs what became of the prompts.

        Args:
            first: This process's completions of the first round.
            rewards: (N, F) rewards of all processes.

        Returns:
            For each replaced group, its new prompt and completions; and the (N, F) rewards of the final batch.
        """
        size, stream = self.num_generations, self._prompt_stream
        rewards, batch, tried = rewards.clone(), list(self._drawn), list(self._drawn)
        verdicts = self._judge(rewards)
        counts, totals = np.bincount(verdicts, minlength=4), [self._total_rewards(rewards)]
        missing = np.flatnonzero(verdicts != KEPT).tolist()
        with_images = [self._has_images(prompt) for prompt in batch] if missing else []
        rounds, generated, groups = 1, 0, {}
        # Every process must generate equally many completions per round
        multiple = self.accelerator.num_processes // math.gcd(size, self.accelerator.num_processes)
        while missing and rounds < (self.args.dynamic_sampling_max_rounds or DEFAULT_MAX_ROUNDS):
            drawn = stream.draw(-(-len(missing) // multiple) * multiple, tried)
            drawn = drawn[: len(drawn) // multiple * multiple]
            if not drawn:
                break
            rounds, tried = rounds + 1, tried + drawn
            rollouts, round_rewards = self._round(drawn)
            verdicts = self._judge(round_rewards)
            counts += np.bincount(verdicts, minlength=4)
            totals.append(self._total_rewards(round_rewards))
            generated += sum(rollout.generated_tokens for rollout in rollouts)
            for candidate in np.flatnonzero(verdicts == KEPT).tolist():
                prompt = drawn[candidate]
                has_images = self._has_images(prompt)
                group = next((g for g in missing if with_images[g] == has_images), None)
                if group is None:
                    continue
                missing.remove(group)
                old, new = (slice(g * size, (g + 1) * size) for g in (group, candidate))
                groups[group], rewards[old] = (prompt, rollouts[new]), round_rewards[new]

        start = self.accelerator.process_index * len(first)
        tokens = sum(rollout.generated_tokens for i, rollout in enumerate(first, start) if i // size in groups)
        if groups:
            tokens = torch.tensor(tokens, device=self.accelerator.device)
            tokens = self.accelerator.reduce(tokens, reduction="sum").item()
        used = sum(rollout.generated_tokens for _, rollouts in groups.values() for rollout in rollouts)
        in_range = len(batch) - len(missing)
        values = {
            "rounds": rounds,
            "prompts_drawn": len(tried),
            "kept": in_range,
            "too_easy": counts[TOO_EASY],
            "too_hard": counts[TOO_HARD],
            "unscored": counts[UNSCORED],
            "surplus": counts[KEPT] - in_range,
            "left": len(missing),
            "discarded_tokens": tokens + generated - used,
            "drawn_reward": torch.cat(totals).nanmean().item(),
            "passes": stream.passes,
        }
        for name, value in values.items():
            self._metrics["train"][f"dynamic_sampling/{name}"].append(float(value))
        if not in_range and not self._warned:
            self._warned = True
            logger.warning(
                "Dynamic sampling drew %d prompts in %d rounds, and none of their groups gives a training signal: %d were "
                "too easy and %d too hard. See `dynamic_sampling_reward`, `dynamic_sampling_range` and the difficulty of "
                "the data.",
                len(tried), rounds, counts[TOO_EASY], counts[TOO_HARD],
            )  # fmt: skip
        return groups, rewards

    def _round(self, drawn: list) -> tuple[list[Rollout], torch.Tensor]:
        """Runs a further round; returns all processes' completions and their rewards."""
        self._round_inputs = self._local_examples(drawn)
        try:
            # TRL resets environments and inserts images, then calls `_generate`, which exits with `_RoundScored`
            super()._generate_and_score_completions(self._round_inputs)
        except _RoundScored as result:
            return gather_object(result.rollouts), result.rewards
        finally:
            self._round_inputs = None
        raise AssertionError("TRL did not generate")

    def _judge(self, rewards: torch.Tensor) -> np.ndarray:
        args, name = self.args, self.args.dynamic_sampling_reward
        return classify_groups(
            rewards.cpu().double().numpy(),
            self.reward_weights.cpu().double().numpy(),
            self.num_generations,
            column=None if name is None else self.reward_func_names.index(name),
            bounds=tuple(args.dynamic_sampling_range or (0.0, 1.0)),
            every_function=self.multi_objective_aggregation == "normalize_then_sum",
        )

    def _total_rewards(self, rewards: torch.Tensor) -> torch.Tensor:
        return total_rewards(rewards, self.reward_weights)

    def _has_images(self, prompt) -> bool:
        """True if a prompt's row has images. TRL takes images from the rows it started with, if any row has one."""
        columns = getattr(self.train_dataset, "column_names", None) or ()
        if not {"image", "images"} & set(columns):
            return False
        row = self._prompt_stream.example(prompt)
        return bool(row.get("images")) or row.get("image") is not None

    # The final batch

    def _log_generated(self, prompts: list, generated: tuple) -> None:
        """Makes TRL log its generation metrics for the final batch.

        TRL generates and logs in one method, so this temporarily replaces everything it generates with. Remove it once
        TRL has a separate method for the metrics (`test_what_is_logged_of_generation`).
        """
        prompt_ids, ids, tool_mask, completions, logprobs, *_ = generated
        stands_in = {
            "_tokenize_prompts": lambda *_: (prompt_ids, None, {}),
            "_generate_single_turn": lambda *_, **__: (ids, logprobs),
            "_tool_call_loop": lambda *_: (tool_mask, completions, ids, logprobs, *_tool_calls(completions), []),
        }
        if self.rollout_func is not None:
            masks = {} if tool_mask is None else {"env_mask": tool_mask}
            rollout = {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": logprobs, **masks}
            stands_in["rollout_func"] = lambda *_: rollout
        seen, tokens = self.state.num_input_tokens_seen, self._metrics["train"]["num_tokens"]
        with replaced(self, **stands_in):
            super()._generate(prompts)
        self.state.num_input_tokens_seen, self._metrics["train"]["num_tokens"] = seen, tokens

    @staticmethod
    def _as_generated(rollouts: list[Rollout]) -> tuple:
        """The final batch in the form that TRL's `_generate` returns."""
        return (
            [rollout.prompt_ids for rollout in rollouts],
            [rollout.completion_ids for rollout in rollouts],
            _column(rollouts, "tool_mask"),
            [rollout.completion for rollout in rollouts],
            _column(rollouts, "logprobs"),
            {},  # fields from a rollout function are already in the rows
            _column(rollouts, "images"),
            [rollout.tool_images for rollout in rollouts],
        )


def _column(rollouts: list[Rollout], name: str) -> list | None:
    values = [getattr(rollout, name) for rollout in rollouts]
    return None if all(value is None for value in values) else values


def _images(prompt) -> list | None:
    """The images of a prompt's messages."""
    contents = [message["content"] for message in prompt] if isinstance(prompt, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image"] for part in parts if part["type"] == "image"] or None


def _tool_calls(completions: list) -> tuple[int, int]:
    """Number of tool calls in the conversations, and how many of them failed."""
    results = [str(m["content"]) for messages in completions for m in messages if m["role"] == "tool"]
    return len(results), sum(result.startswith("{'error': ") for result in results)


def check_dynamic_sampling(trainer_class: type, arguments: dict[str, Any]) -> None:
    """Raises `ValueError` for settings that dynamic sampling cannot work with, before a model is loaded.

    Args:
        trainer_class: The trainer's class.
        arguments: The arguments of its `__init__`.
    """
    args = arguments["args"]
    if not getattr(args, "dynamic_sampling", False):
        return
    if arguments["train_dataset"] is None:
        raise ValueError(
            "`dynamic_sampling` draws fresh prompts from the training set, but `train_dataset` is None: the environment's "
            "`reset` makes the prompts. Pass a `train_dataset` whose rows `reset` takes, or set `dynamic_sampling=False`."
        )
    owner = next(cls for cls in trainer_class.__mro__ if "_get_train_sampler" in vars(cls))
    if owner.__module__.partition(".")[0] not in ("trl", "trl_credit"):
        raise ValueError(
            f"`dynamic_sampling` draws prompts in the order of TRL's sampler, which {owner.__name__} overrides "
            "(`_get_train_sampler`). Remove the override, or set `dynamic_sampling=False`."
        )
    rewards = arguments["reward_funcs"] or []
    rewards = rewards if isinstance(rewards, list) else [rewards]
    if arguments["environment_factory"] is None and all(
        callable(reward) and not isinstance(reward, torch.nn.Module) for reward in rewards
    ):  # else the names are known only once the models are loaded
        check_reward_name(args, distinct_names([get_callable_name(reward) for reward in rewards], warn=False))


def check_reward_name(args, names: list[str]) -> None:
    """Raises `ValueError` unless `dynamic_sampling_reward` is one of the reward functions' names, or unset."""
    name = getattr(args, "dynamic_sampling_reward", None)
    if name is not None and args.dynamic_sampling and name not in names:
        hint = nearest(str(name).rpartition(".")[2], names)
        raise ValueError(f"`dynamic_sampling_reward`: there is no reward function {name!r}. {hint}")
