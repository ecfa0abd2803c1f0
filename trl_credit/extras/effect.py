"""Raises if a run trains nothing: too little data, nothing trainable, no gradient, or no parameter that changes."""

import functools
import logging
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import IterableDataset
from torch import nn
from transformers.trainer_utils import has_length
from transformers.training_args import OptimizerNames

from ..batching import loss_mask
from .rewards_seen import RewardsSeen
from .shards import local_part


logger = logging.getLogger(__name__)


class NothingTrainedError(RuntimeError):
    """A run could not train anything, or ended without having trained anything."""


def check_rows(dataset: Any, args) -> None:
    """Checks that the dataset fills a generation batch; otherwise TRL, which uses only full ones, would drop every row.

    Args:
        dataset: The training data; not checked if it has no length.
        args (`GRPOConfig`): The config.

    Raises:
        ValueError: The rows do not fill one generation batch.
    """
    if dataset is None or not has_length(dataset):
        return
    needed = args.generation_batch_size // args.num_generations
    if len(dataset) < needed:
        raise ValueError(
            f"The training data has {len(dataset)} {'row' if len(dataset) == 1 else 'rows'}, but a generation batch needs "
            f"{needed} (`generation_batch_size` {args.generation_batch_size} / `num_generations` {args.num_generations}): "
            "no update would be made. Add rows, or lower `per_device_train_batch_size` "
            f"({args.per_device_train_batch_size}), `steps_per_generation` ({args.steps_per_generation}) or the number of "
            f"processes ({args.world_size})."
        )


def check_trainable(model: nn.Module) -> None:
    """Checks that the model has a parameter to train.

    Raises:
        NothingTrainedError: No parameter requires a gradient, or only those of adapters that are not active.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not is_peft_model(model):
        if not trainable:
            raise NothingTrainedError(
                "No parameter of the model is trainable: `requires_grad` is False for all of them. Set it to True for the "
                "ones to train."
            )
        return
    active = set(model.active_adapters)
    inactive = sorted(set(model.peft_config) - active)
    if not any(all(f".{adapter}." not in f".{name}." for adapter in inactive) for name in trainable):
        others = f"; {', '.join(inactive)} is not active" * bool(trainable)
        raise NothingTrainedError(
            f"No parameter of the adapter {', '.join(sorted(active))!r} is trainable{others}. PEFT loads adapters frozen: "
            "load it with `PeftModel.from_pretrained(model, path, is_trainable=True)`."
        )


class EffectMixin:
    """Raises as early as possible if a run trains nothing.

    Before the first generation: the dataset does not fill a generation batch, or the model has no trainable parameter.
    In the first update: no gradient reaches any trained parameter. At the end: the run made no update, no update had a
    gradient, or every parameter is bit-identical to its start. `learning_rate: 0` may be on purpose and only warns.

    Raises:
        ValueError: From `train`: too few rows.
        NothingTrainedError: From `train`.
    """

    _updates_with_gradient = 0
    _rewards_seen: RewardsSeen | None = None

    def set_initial_training_values(self, args, dataloader):
        # The first hook after the data are loaded; their sampler may be a subclass's own
        if has_length(dataloader) and len(dataloader) == 0:
            check_rows(self.train_dataset, self.args)
            raise NothingTrainedError("The training data yields no batch, so no update can be made.")
        return super().set_initial_training_values(args, dataloader)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        check_trainable(self.accelerator.unwrap_model(self.model))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Until the checkpoint's state is read, assume that the run trained something before it
        self._resumed = resume_from_checkpoint is not None
        self._updates_with_gradient = int(self._resumed)
        self._reached = False
        # Counts of all completions, those with a token in the loss, and those with an advantage
        self._completions_seen = torch.zeros(3, device=self.accelerator.device)
        self._rewards_seen = RewardsSeen(self.reward_funcs, self.reward_func_names, self.accelerator.device)
        rates = [group.get("initial_lr", group.get("lr")) for group in self.optimizer.param_groups]
        self._learns = self.is_deepspeed_enabled or any(rate != 0 for rate in rates)
        if not self._learns:
            logger.warning("`learning_rate` is 0: the run will make every update, but no parameter will change.")
        self._bits_before = self._bits()
        return prepared

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if self.model.training:
            in_loss = loss_mask(batch).any(-1)
            advantages = (batch["advantages"].view(len(in_loss), -1) != 0).any(-1)
            seen = torch.stack([torch.ones_like(in_loss), in_loss, advantages])
            self._completions_seen += seen.sum(-1).to(self._completions_seen)
        return batch

    def _calculate_rewards(self, inputs, *args, **kwargs):
        rewards = super()._calculate_rewards(inputs, *args, **kwargs)
        if self._rewards_seen is not None and self.model.training:
            self._rewards_seen.add(rewards, inputs)
        return rewards

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.model.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise NothingTrainedError(
                "The loss has no gradient: the trainable parameters take no part in the model's forward. Set "
                "`requires_grad` for parameters that do."
            )
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        if not self._reached and not self._hides_gradients:
            self._check_reached()
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if grad_norm is None or self._hides_gradients or 0.0 < float(grad_norm) < float("inf"):
            self._updates_with_gradient += not self._nonfinite_in_row
        return grad_norm

    @property
    def _hides_gradients(self) -> bool:
        """True if the optimizer consumes gradients during the backward pass and leaves none to inspect."""
        optimizer = OptimizerNames(self.args.optim)
        return optimizer in (OptimizerNames.LOMO, OptimizerNames.ADALOMO) or optimizer.value.endswith("_layerwise")

    def _check_reached(self) -> None:
        self._reached = True
        if self.is_deepspeed_enabled:  # DeepSpeed keeps gradients elsewhere
            return
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        reached = any(parameter.grad is not None for parameter in parameters)  # a process's shards may have none
        if not self.accelerator.reduce(torch.tensor(int(reached), device=self.accelerator.device), reduction="sum"):
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            first = next((names[id(parameter)] for parameter in parameters if id(parameter) in names), None)
            raise NothingTrainedError(
                f"The loss has no gradient for any of the optimizer's {len(parameters)} parameters"
                f"{f' (the first is {first!r})' * bool(first)}: they take no part in the model's forward. Set "
                "`requires_grad` for parameters that do."
            )

    def _run_epoch(self, **kwargs):
        before = self.state.global_step
        super()._run_epoch(**kwargs)
        resumes = kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]
        if self.state.global_step == before and not resumes:
            # Otherwise a stream that ends before its first update would restart forever
            self.control.should_training_stop = True

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        self._check_effect()
        return output

    @property
    def updates_made(self) -> int:
        """Updates since the training began or was resumed."""
        return self.state.global_step - self._initial_global_step

    def _check_effect(self) -> None:
        state, updates = self.state, self.updates_made
        moved = self._bits() != self._bits_before
        counts = torch.tensor([self._updates_with_gradient, moved], device=self.accelerator.device)
        counts = torch.cat([counts.to(self._completions_seen), self._completions_seen])
        counts = self.accelerator.reduce(counts, reduction="sum")
        with_gradient, moved, completions, in_loss, advantages = counts.tolist()
        if updates == 0:
            if self._resumed and state.global_step >= state.max_steps:
                logger.warning(
                    "The run had already finished at update %d of %d: no further update was made.",
                    state.global_step,
                    state.max_steps,
                )
                return
            raise NothingTrainedError(f"Nothing was trained: {self._why_no_update()}")
        made = f"{'the only update' if updates == 1 else f'all {updates} updates'}"
        if not with_gradient and self._nonfinite_updates >= updates:
            why = f"{made} had a non-finite loss or gradient, so nothing was applied."
        elif not with_gradient and not in_loss:
            why = (
                f"no token of the {completions:.0f} completions is in the loss. Truncated completions are masked by "
                "`mask_truncated_completions` (raise `max_completion_length`), tool results by their mask."
            )
        elif not with_gradient and not advantages:
            why = (
                f"none of the {completions:.0f} completions has an advantage: the rewards of each group were all equal, or "
                f"None. {self._rewards_seen.described(functools.partial(self.accelerator.reduce, reduction='sum'))}".strip()
                + " Check `reward` and `frac_reward_zero_std` in the log, and the difficulty of the data."
            )
        elif not with_gradient:
            why = f"{made} had a zero gradient{', or one that overflowed' * (self.args.fp16)}."
        elif not moved and self._learns and not self._resumed:
            why = (
                f"{made} had gradients but changed no parameter. Usual causes are a `learning_rate` "
                f"({self.args.learning_rate}) too small for the parameters' dtype, and a warmup longer than the run."
            )
            if updates == 1 and self.args.warmup_steps:  # a recipe's trial: warmup starts at rate 0
                logger.warning(why)
                return
        else:
            return
        raise NothingTrainedError(f"Nothing was trained: {why}")

    def _why_no_update(self) -> str:
        if self.state.max_steps <= 0:
            return f"`num_train_epochs` is {self.args.num_train_epochs}."
        needed = self.args.generation_batch_size // self.num_generations
        if isinstance(self.train_dataset, IterableDataset):
            return (
                "the stream of training data ended before the first update. A generation batch needs "
                f"{needed} rows and gives {self.args.steps_per_generation * self.num_iterations} micro-batches; an update "
                f"needs {self.args.gradient_accumulation_steps} of them (`gradient_accumulation_steps`)."
            )
        return "no update was made."

    @torch.no_grad()
    def _bits(self) -> list[int]:
        """A checksum of this process's part of each trained parameter. Changing any single word changes it."""
        sums = []
        for _, parameter in self.model.named_parameters():
            part = local_part(parameter)
            if parameter.requires_grad and part.is_floating_point() and part.numel():
                flat = part.contiguous().view(-1)
                words = torch.int64 if part.nbytes % 8 == 0 == part.data_ptr() % 8 else _INTEGERS[part.element_size()]
                sums.append(flat.view(words).sum(dtype=torch.int64))
        return [int(value) for value in sums]

    def _extra_state(self):
        return super()._extra_state() | {"updates_with_gradient": self._updates_with_gradient}

    def _load_extra_state(self, state):
        super()._load_extra_state(state)
        self._updates_with_gradient = state.get("updates_with_gradient", 1)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
