"""Scores given completions with the trainer's own code: the same forwards, signals and weights as in training."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._trl import pad
from .._util.moved import moved_names
from .._util.replaced import replaced
from .._util.tokens import token_pieces
from ..batching import cut, select
from ..credit_pass import CreditResult
from ..extras.groups import total_rewards
from ..extras.reward_guard import TurnRewards
from ..methods import CreditInputs, CreditMethod
from ..methods.compose import AllSignals, credit_of
from ..methods.metrics import remedy_if_uniform
from ..methods.mix import inputs_of
from ..records.record import SOURCE_PROMPT, TURN_REWARDS, CompletionCredit
from ..rewards.thinking import opened_tag
from ..signals.base import signal_titles
from ..signals.models import vocabulary_size
from ..trainer.config import CreditGRPOConfig
from ..trainer.grpo import CreditGRPOTrainer
from ..trainer.rollout_stage import add_rollout_stage, extend_rollout


__getattr__ = moved_names(__name__)


# Maximum tokens per forward: prompts and completions, including padding
TOKENS_PER_BATCH = 16_384


@dataclass(frozen=True)
class Completion:
    """A completion to score.

    Args:
        prompt: Plain text, or messages.
        token_ids: The completion's tokens. Without them, `text` is tokenized.
        text: The completion's text.
        finished: Append the end-of-sequence token to a tokenized `text`.
        mask: Tokens that enter the loss. By default, all.
        advantage: The sequence advantage. Weights do not depend on it, only token advantages do: without it, there are
            none, except that a method that adds a term has the term, and one with advantages of its own has those.
        reward: The reward. By default, the sum of `turn_rewards`.
        turn_rewards: The reward of each turn; `None` for none. What `reward` has beyond their sum is the last turn's.
        group: Number of its prompt.
        example: The dataset's row, for methods that read its columns.
        info: Stored in the record.
        scored: False for a completion that is only there for its group: methods that look at groups see it, and it has no
            record.

    Text of tools or an environment, where the mask is False, starts the next turn.
    """

    prompt: str | list[dict]
    token_ids: Sequence[int] | None = None
    text: str | None = None
    finished: bool = True
    mask: Sequence[bool] | None = None
    advantage: float | None = None
    reward: float | None = None
    turn_rewards: Sequence[float | None] | None = None
    group: int = 0
    example: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    scored: bool = True

    def __post_init__(self):
        if self.reward is None and self._known_turn_rewards:
            object.__setattr__(self, "reward", float(sum(self._known_turn_rewards)))

    @property
    def _known_turn_rewards(self) -> list[float]:
        return [value for value in self.turn_rewards or () if value is not None]

    @property
    def num_turns(self) -> int:
        """Runs of tokens in the loss; 1 without a mask."""
        mask = [True] if self.mask is None else list(map(bool, self.mask))
        return sum(on and not before for before, on in zip([False, *mask], mask, strict=False))

    @property
    def rewards_by_turn(self) -> TurnRewards | None:
        """The reward, each turn's and the rest; `None` without a reward."""
        if self.reward is None:
            return None
        each = [math.nan if value is None else float(value) for value in self.turn_rewards or ()]
        rest = self.reward - sum(self._known_turn_rewards)
        return TurnRewards(each, 0.0 if abs(rest) < 1e-6 * max(1.0, abs(self.reward)) else rest)


class _Recorder(CreditGRPOTrainer):
    """A trainer that never trains. Keeps the rewards it computed."""

    rewards: torch.Tensor | None = None

    def _calculate_rewards(self, *args, **kwargs):
        self.rewards = super()._calculate_rewards(*args, **kwargs)
        return self.rewards

    def _rollout_rewards(self, rows):
        return total_rewards(self.rewards, self.reward_weights)

    def _check_evaluation(self, args):
        """Does nothing: it keeps every reward itself."""

    def _log_credit(self, result):
        """Does nothing: nobody reads the log."""


class CreditScorer:
    """Scores completions with one or more credit methods. All methods share the forwards.

    All values come from [`CreditGRPOTrainer`], which runs its loss without gradients on the given completions. The
    scores are therefore the ones that training would use.

    Args:
        model: Path or hub id, or a model object (which is put in eval mode).
        methods: By label, see [`labelled`].
        processing_class: The tokenizer. By default, the model's.
        temperature: The rollout temperature. All log-probs and entropies use it.
        chat_template_kwargs: As in [`~trl.GRPOConfig`].
        dtype: Dtype for loading a model, as in `from_pretrained`.
        reward_funcs: Reward functions for [`generate`].
        **settings: Further fields of [`CreditGRPOConfig`]. `per_device_train_batch_size` limits the rows of the forwards of
            rollout stages; by default they have as many as the others, up to [`TOKENS_PER_BATCH`] tokens.

    Raises:
        ValueError: As in the trainer's constructor.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        methods: Mapping[str, CreditMethod],
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        temperature: float = 1.0,
        chat_template_kwargs: dict[str, Any] | None = None,
        dtype: str = "float32",
        reward_funcs: Sequence[Callable] = (),
        **settings: Any,
    ):
        self.methods = dict(methods)
        if continued := [label for label, method in self.methods.items() if method.continuations()]:
            raise ValueError(
                f"{', '.join(continued)}: the credit comes from continuations of the completions, which are sampled in "
                "training only. Leave it out."
            )
        # By label, how to fix the methods that were uniform in effect in the latest scoring
        self.advice: dict[str, str] = {}
        self._rewarded = bool(reward_funcs)
        self._rows: int | None = settings.get("per_device_train_batch_size")
        self._folder = tempfile.TemporaryDirectory(prefix="trl-credit-")
        on_cpu = not torch.accelerator.is_available()
        arguments = {
            "output_dir": str(Path(self._folder.name) / "unused"),
            "credit": {
                "method": f"{AllSignals.__module__}.{AllSignals.__qualname__}",
                "methods": [method.to_dict() for method in self.methods.values()],
            },
            "temperature": temperature,
            "chat_template_kwargs": chat_template_kwargs,
            "model_init_kwargs": {"dtype": dtype} if isinstance(model, str) else None,
            "bf16": False,
            "use_cpu": on_cpu,
            "report_to": "none",
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "remove_unused_columns": False,
            "per_device_train_batch_size": 2,
            "num_generations": 2,
            "disable_tqdm": True,
        }
        self._trainer = _Recorder(
            model=model,
            reward_funcs=list(reward_funcs) or _no_reward,
            args=CreditGRPOConfig(**(arguments | settings)),
            # A placeholder: the prompts come with the completions
            train_dataset=Dataset.from_list([{"prompt": ".", **dict.fromkeys(self._columns(), ".")}]),
            processing_class=processing_class,
        )
        self._trainer.model.eval()
        self._result: CreditResult | None = None
        self._trainer.credit_observers.append(self._keep)
        self._titles = signal_titles(list(self._trainer.credit_method.signals()))

    def _columns(self) -> list[str]:
        """The dataset's columns that the methods' signals read."""
        signals = [signal for method in self.methods.values() for signal in method.signals()]
        return [column for signal in signals for column in signal.source().columns]

    @property
    def trainer(self) -> CreditGRPOTrainer:
        """The trainer that does the scoring."""
        return self._trainer

    @property
    def model(self) -> PreTrainedModel:
        return self._trainer.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._trainer.tokenizer

    @property
    def vocab_size(self) -> int:
        return vocabulary_size(self.model)

    def generate(
        self, examples: Sequence[Mapping[str, Any]], num_generations: int, max_rows: int = 64
    ) -> list[Completion]:
        """Generates completions with the policy. With reward functions, adds TRL's rewards and advantages.

        Args:
            examples: Rows of a dataset, with `prompt` and the columns that the reward functions read.
            num_generations: Completions per row, at least 2.
            max_rows: Maximum completions to generate at once.
        """
        trainer = self._trainer
        for i, example in enumerate(examples):
            if not trainer.tokenize_prompts([example["prompt"]])[0][0]:
                raise ValueError(f"Prompt {i + 1} is empty: there is nothing to complete.")
        trainer.num_generations_eval = num_generations
        names = trainer.reward_func_names
        completions = []
        each = max(1, max_rows // num_generations)
        for start in range(0, len(examples), each):
            part = [dict(example) for example in examples[start : start + each] for _ in range(num_generations)]
            batch = trainer._generate_and_score_completions([dict(example) for example in part])
            rewards = trainer.rewards.cpu()
            totals = [None if math.isnan(r) else r for r in total_rewards(rewards, trainer.reward_weights).tolist()]
            present, tools = batch["completion_mask"].bool(), batch.get("tool_mask")
            for i, example in enumerate(part):
                # TRL may mask a truncated completion entirely, but its tokens are still there
                length = int(present[i].sum()) or int(
                    (batch["completion_ids"][i] != trainer.tokenizer.pad_token_id).sum()
                )
                mask = present[i, :length] if tools is None else present[i, :length] & tools[i, :length].bool()
                completions.append(
                    Completion(
                        prompt=example["prompt"],
                        token_ids=batch["completion_ids"][i, :length].tolist(),
                        mask=mask.tolist(),
                        advantage=batch["advantages"][i].item() if self._rewarded else None,
                        reward=totals[i] if self._rewarded else None,
                        group=(start * num_generations + i) // num_generations,
                        example=example,
                        info={"rewards": dict(zip(names, rewards[i].tolist(), strict=True))} if self._rewarded else {},
                    )
                )
        trainer._metrics["eval"].clear()
        return completions

    def rewards(self, examples: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[int]]) -> list[float]:
        """TRL's weighted rewards of completions, given as tokens, of these rows of a dataset. NaN without a reward."""
        if not rows:
            return []
        trainer = self._trainer
        texts = self.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
        prompts = [example["prompt"] for example in examples]
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        # TRL takes either messages or text in one call
        found = torch.full((len(rows), len(trainer.reward_funcs)), math.nan)
        for plain in (True, False):
            own = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str) == plain]
            if own:
                batch = [[dict(examples[i]) for i in own], *([part[i] for i in own] for part in (prompts, completions))]
                found[own] = trainer._calculate_rewards(*batch, [list(rows[i]) for i in own]).float().cpu()
        trainer._metrics["eval" if not trainer.model.training else "train"].clear()
        return total_rewards(found, trainer.reward_weights).tolist()

    def token_ids(self, completion: Completion, prompt: str = "") -> list[int]:
        """The completion's tokens. A thinking tag that ends the rendered prompt is removed from the text's start.

        Raises:
            ValueError: The completion has neither text nor tokens.
        """
        if completion.token_ids is not None:
            return list(completion.token_ids)
        if completion.text is None:
            raise ValueError("A completion needs `token_ids` or `text`.")
        text = completion.text.removeprefix(opened_tag(prompt))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return [*ids, eos] if completion.finished and eos is not None else ids

    def score(self, completions: Sequence[Completion], one_batch: bool = False) -> list[CompletionCredit]:
        """Scores completions and returns their records, in the same order, without those that are not `scored`.

        A completion without a token in the loss has no weights, and its log-probs are NaN.

        Args:
            completions: The completions. Those of a group are scored together.
            one_batch: Whether all are one generation batch for methods that compare completions; by default, batches have as
                many groups as fit in a forward.

        Raises:
            ValueError: A completion has no text or tokens, an empty prompt, a mask of the wrong length or a token id
                outside the vocabulary, or is longer than the model's context.
        """
        prompts: dict[int, list[int]] = {}
        # TRL takes either messages or text in one call, not both
        kinds = [
            [i for i, c in enumerate(completions) if isinstance(c.prompt, str) == plain] for plain in (True, False)
        ]
        for kind in filter(None, kinds):
            tokenized, _, _ = self._trainer.tokenize_prompts([completions[i].prompt for i in kind])
            prompts |= dict(zip(kind, tokenized, strict=True))
        if empty := [i for i in prompts if not prompts[i]]:
            raise ValueError(
                f"Completion {min(empty) + 1} has an empty prompt: there is nothing before its first token."
            )
        rows = [self.token_ids(completions[i], self.tokenizer.decode(prompts[i])) for i in range(len(completions))]
        for i, row in enumerate(rows):
            if wrong := [token for token in row if not 0 <= token < self.vocab_size]:
                raise ValueError(
                    f"Completion {i + 1} has the token id {wrong[0]}, but the model's vocabulary ends at "
                    f"{self.vocab_size - 1}: were the ids made with another tokenizer?"
                )
        context = self._trainer.context_length
        for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
            if completion.mask is not None and len(completion.mask) != len(row):
                raise ValueError(
                    f"Completion {i + 1}: the mask has {len(completion.mask)} entries for {len(row)} tokens."
                )
            if context is not None and (length := len(prompts[i]) + len(row)) > context:
                raise ValueError(
                    f"Completion {i + 1}: prompt and completion have {length} tokens, more than the model's context of "
                    f"{context}. Leave it out or cut it."
                )
        in_groups = [
            label
            for label, method in self.methods.items()
            if method.has_rollout_stage or any(signal.source().needs_groups for signal in method.signals())
        ]
        if in_groups and all(completion.reward is None for completion in completions):
            raise ValueError(
                f"{', '.join(in_groups)}: the credit depends on the rewards of whole groups, and these completions have "
                "none. Give `reward_funcs`, completions with rewards, or leave it out."
            )
        check_turns(self.methods, completions)
        by_turn = any(completion.turn_rewards is not None for completion in completions)
        records: dict[int, CompletionCredit] = {}
        verdicts: dict[str, list[str | None]] = {label: [] for label in self.methods}

        def in_loss(i: int) -> bool:
            return bool(rows[i]) if completions[i].mask is None else any(completions[i].mask)

        sources = self._trainer.credit_pass.sources.values()
        together = self._trainer.credit_method.has_rollout_stage or any(source.needs_groups for source in sources)
        sizes = {
            i: (len(rows[i]), len(prompts[i]))
            for i in range(len(rows))
            if in_loss(i) and (together or completions[i].scored)
        }
        groups = {i: completions[i].group for i in sizes} if together else None

        def scored_parts() -> Iterator[tuple[list[int], CreditInputs]]:
            for kind in kinds:
                known = {i: sizes[i] for i in kind if i in sizes}
                whole = [list(known)] if one_batch and together and known else _batches(known, groups)
                for batch in whole:
                    if not any(completions[i].scored for i in batch):
                        continue
                    rollout = self._rollout(
                        [completions[i] for i in batch], [prompts[i] for i in batch], [rows[i] for i in batch], by_turn
                    )
                    scored = {place: known[i] for place, i in enumerate(batch) if completions[i].scored}
                    for places in _batches(scored) if one_batch else [list(scored)]:
                        yield [batch[place] for place in places], self._inputs(rollout, places)

        for part, inputs in scored_parts():
            advantages = torch.tensor([completions[i].advantage or 0.0 for i in part], device=inputs.mask.device)
            weights, token_advantages = credit_of(self.methods, inputs, advantages)
            for place, (label, method) in enumerate(self.methods.items()):
                seen = inputs_of(method, inputs, place)
                verdicts[label].append(remedy_if_uniform(method, seen, weights.get(label)))

            def of(tensor: torch.Tensor, place: int, length: int) -> np.ndarray:
                return tensor[place, :length].float().cpu().numpy()

            for place, i in enumerate(part):
                length = len(rows[i])
                records[i] = self._record(
                    completions[i],
                    prompts[i],
                    rows[i],
                    mask=inputs.mask[place, :length].cpu().numpy(),
                    logps=of(inputs.policy_logps, place, length),
                    entropy=of(inputs.policy_entropy, place, length),
                    signals={self._titles[s]: of(value, place, length) for s, value in inputs.signals.items()},
                    weights={label: of(value, place, length) for label, value in weights.items()},
                    token_advantages={
                        label: of(value, place, length)
                        for label, value in token_advantages.items()
                        if completions[i].advantage is not None
                        or _needs_no_advantage(self.methods[label], completions[i])
                    },
                )
        # Verdict of the longest completions. A method counts as uniform only if it is so in all batches
        self.advice = {label: found[-1] for label, found in verdicts.items() if found and all(found)}
        scored = [i for i in range(len(rows)) if completions[i].scored]
        for i in set(scored) - set(records):  # none of its tokens are in the loss
            nothing = np.full(len(rows[i]), np.nan, np.float32)
            mask = np.zeros(len(rows[i]), bool)
            records[i] = self._record(completions[i], prompts[i], rows[i], mask=mask, logps=nothing, entropy=nothing)
        return [records[i] for i in scored]

    def _rollout(
        self, completions: Sequence[Completion], prompts: list[list[int]], rows: list[list[int]], by_turn: bool
    ) -> dict[str, Any]:
        """A generation batch as the trainer has it, with the results of the rollout stage.

        Args:
            completions: The completions.
            prompts: Token ids of their prompts.
            rows: Their token ids.
            by_turn: Whether there are rewards of turns, in this batch or another.
        """
        trainer = self._trainer
        device = trainer.accelerator.device
        pad_id = trainer.tokenizer.pad_token_id
        width = max(2, *map(len, rows))  # TRL reads a one-column tensor as one value per completion

        def padded(values: list[list], side: str, value: int) -> torch.Tensor:
            return pad([torch.tensor(v, dtype=torch.long) for v in values], value, side).to(device)

        def completion_side(values: list[list], value: int) -> torch.Tensor:
            return padded([[*v, *[value] * (width - len(v))] for v in values], "right", value)

        masks = [
            list(map(int, c.mask)) if c.mask is not None else [1] * len(r)
            for c, r in zip(completions, rows, strict=True)
        ]
        batch = {
            "prompt_ids": padded(prompts, "left", pad_id),
            "prompt_mask": padded([[1] * len(p) for p in prompts], "left", 0),
            "completion_ids": completion_side(rows, pad_id),
            "completion_mask": completion_side([[1] * len(r) for r in rows], 0),
            "tool_mask": completion_side(masks, 0),
            "advantages": torch.tensor([c.advantage or 0.0 for c in completions], device=device),
            "num_items_in_batch": torch.tensor(float(max(1, sum(map(sum, masks)))), device=device),
        }
        examples = [dict(c.example) for c in completions]
        rewards = torch.tensor([math.nan if c.reward is None else c.reward for c in completions], device=device)
        groups = torch.tensor([c.group for c in completions], device=device).unique(return_inverse=True)[1]
        # As many rows in a forward as in the loss's
        fit = max(1, TOKENS_PER_BATCH // (batch["prompt_ids"].size(1) + width))
        with replaced(trainer.args, per_device_train_batch_size=self._rows or min(fit, len(completions))):
            extend_rollout(trainer, examples, [c.prompt for c in completions], batch, lambda: rewards, groups)
            if trainer.credit_method.has_rollout_stage:
                turn_rewards = [c.rewards_by_turn for c in completions] if by_turn else None
                add_rollout_stage(trainer, trainer.credit_method, batch, rewards, groups, turn_rewards)
        return batch

    def _inputs(self, batch: dict[str, Any], places: list[int]) -> CreditInputs:
        """The inputs of the credit methods, with all methods' signals, of a generation batch's completions in this order."""
        trainer = self._trainer
        if places != list(range(len(batch["completion_ids"]))):
            batch = select(batch, places)
            batch = batch if trainer.credit_pass.padding_affects_output else cut(batch)
        with torch.no_grad():
            trainer._compute_loss(trainer.model, batch)
        trainer._metrics["eval"].clear()
        result, self._result = self._result, None
        return result.inputs

    def _keep(self, batch: dict[str, Any], result: CreditResult) -> None:
        self._result = result

    def _record(self, completion: Completion, prompt: list[int], row: list[int], **arrays: Any) -> CompletionCredit:
        text = completion.text
        return CompletionCredit(
            prompt=self.tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            completion=self.tokenizer.decode(row, skip_special_tokens=True) if text is None else text,
            tokens=token_pieces(self.tokenizer, row),
            token_ids=np.array(row, np.int64),
            advantage=completion.advantage,
            reward=completion.reward,
            group=completion.group,
            info={SOURCE_PROMPT: completion.prompt}
            | ({} if completion.turn_rewards is None else {TURN_REWARDS: list(completion.turn_rewards)})
            | dict(completion.info),
            **arrays,
        )


def check_turns(methods: Mapping[str, CreditMethod], completions: Sequence[Completion] | None = None) -> None:
    """Raises `ValueError` if a method credits turns, and none of the completions (generated ones, if `None`) has two."""
    if completions is not None and any(completion.num_turns > 1 for completion in completions):
        return
    for label, method in methods.items():
        if any(part.needs_turns for part in method.components().values()):
            found = "completions that are generated here" if completions is None else "these completions"
            raise ValueError(
                f"{label}: the method needs turns, and {found} have one turn each. Show completions with a `mask` that is 0 "
                "on text of tools or an environment (in a file, or the `credit/` folder of a run with `credit_log_steps`), "
                "or leave it out."
            )


def _needs_no_advantage(method: CreditMethod, completion: Completion) -> bool:
    """True if the token advantages say something without the completion's advantage: they are a term by itself, or the
    method's own, made from the rewards."""
    is_term = method.has_term and not (method.reweights or method.reads_sign)
    return is_term or (method.own_advantages and method.has_rollout_stage and completion.reward is not None)


def _batches(sizes: Mapping[int, tuple[int, int]], groups: Mapping[int, int] | None = None) -> Iterator[list[int]]:
    """Batches of completions of similar length, as large as fits.

    Args:
        sizes: Tokens of completion and prompt.
        groups: The group of each completion, if groups must stay whole.
    """
    if groups is not None:
        together: dict[int, list[int]] = {}
        for i in sizes:
            together.setdefault(groups[i], []).append(i)
        longest = {group: max(sizes[i] for i in rows) for group, rows in together.items()}
        batch: list[int] = []
        for group in sorted(together, key=longest.get):
            if batch and sum(longest[group]) * (len(batch) + len(together[group])) > TOKENS_PER_BATCH:
                yield batch
                batch = []
            batch = batch + together[group]
        if batch:
            yield batch
        return
    part: list[int] = []
    for i in sorted(sizes, key=sizes.get):
        width = sum(max(sizes[j][side] for j in [*part, i]) for side in (0, 1))
        if part and width * (len(part) + 1) > TOKENS_PER_BATCH:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _no_reward(completions, **kwargs) -> list[float]:
    return [0.0] * len(completions)
