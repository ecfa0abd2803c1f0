"""Exact resume: saves the state that TRL does not, refuses incomplete checkpoints, and handles preemption.

A run stopped after any update and resumed from its checkpoint reproduces the parameters and metrics of the
uninterrupted run, bit for bit with transformers generation. TRL and transformers save parameters, optimizer, scheduler
and random states. This module also saves, per process and without pickle, the unfinished generation batch, TRL's step
counter, metrics not yet logged, dynamic sampling's prompt stream, the adaptive entropy coefficient, and a reference
model that follows the policy. After the first epoch it also advances the sampler to the right pass.
[`~trl_credit.extras.checkpoints`] checks that a checkpoint's files are present and undamaged.
"""

import json
import logging
import warnings
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from transformers.optimization import GreedyLR
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import RepeatSampler, strip_images_from_messages

from .checkpoints import (
    MANIFEST_NAME,
    STATE_NAME,
    ResumeError,
    load_tree,
    save_tree,
    write_manifest,
)
from .machines import WAY_OUT, agreed_checkpoint, own_names
from .preemption import PREEMPTED, PreemptionCallback
from .shards import local_part


logger = logging.getLogger(__name__)


REFERENCE_NAME = "credit_reference_{}.safetensors"

# Settings that must be unchanged for a generation batch to continue
_BATCH_SETTINGS = (
    "world_size",
    "per_device_train_batch_size",
    "steps_per_generation",
    "gradient_accumulation_steps",
    "num_generations",
    "num_iterations",
)


class ResumeMixin:
    """Makes TRL's trainer resume exactly from its checkpoints; see the module docstring."""

    _checkpoint_state: dict[str, Any] | None = None  # state of the checkpoint being resumed
    _saved_step: int | None = None
    _train_sampler = None
    _warned_of_own_disks = False

    def __init__(self, *args, **kwargs):
        training_args = kwargs["args"]
        asked, training_args.enable_jit_checkpoint = training_args.enable_jit_checkpoint, False
        try:
            super().__init__(*args, **kwargs)
        finally:
            training_args.enable_jit_checkpoint = asked
        self._preemption = PreemptionCallback(self.accelerator) if asked else None
        if asked:
            self.add_callback(self._preemption)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """[`~transformers.Trainer.train`] that resumes exactly, and only from complete checkpoints.

        Args:
            resume_from_checkpoint: Path of a checkpoint; `True` for the last complete one in `output_dir`; `"auto"` for
                that one if it exists, else start from the beginning.

        A checkpoint saved with `save_only_model` has no optimizer, schedule or random state. The run continues from its
        step with that step's learning rate and data but a new optimizer, and warns about it.

        Raises:
            ResumeError: The checkpoint is incomplete, does not exist, or holds only the model, from which DeepSpeed and
                FSDP cannot resume.
            SystemExit: With code 143, after SIGTERM with `enable_jit_checkpoint`, once the checkpoint is written.
        """
        checkpoint, model_only = agreed_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if model_only and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ResumeError(
                f"`resume_from_checkpoint`: {checkpoint!r} holds only the model (`save_only_model`), which "
                f"{'DeepSpeed' if self.is_deepspeed_enabled else 'FSDP'} cannot resume. Start a new run from it: "
                "pass it as `model_name_or_path`, with another `output_dir` and without `save_only_model`."
            )
        if model_only:
            logger.warning(
                "%s holds only the model (`save_only_model`). The run continues from its update, with that update's "
                "learning rate and data, but with a new optimizer, new random states and a new generation batch: it will "
                "not reproduce the run that was stopped.",
                checkpoint,
            )
        elif checkpoint is not None:
            self._read_checkpoint_state(Path(checkpoint))
        elif (earlier := self._earlier_checkpoint()) is not None:
            logger.warning(
                "%s is of an earlier run. This run starts anew and leaves it there, where it may be taken for one of this "
                "run's: name another `output_dir`, remove it, or continue from it with `resume_from_checkpoint: auto`.",
                earlier,
            )
        try:
            output = super().train(checkpoint, *args, **kwargs)
        finally:
            self._checkpoint_state = None
            if self._preemption is not None:
                self._preemption.restore()
        if self._preemption is not None and self._preemption.stopped:
            logger.warning("SIGTERM: saved after update %d; exiting with code %d.", self.state.global_step, PREEMPTED)
            raise SystemExit(PREEMPTED)
        return output

    def _earlier_checkpoint(self) -> str | None:
        """The last checkpoint in `output_dir`, for the main process."""
        if not self.is_world_process_zero() or not Path(self.args.output_dir).is_dir():
            return None
        return get_last_checkpoint(self.args.output_dir)

    # Save

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:  # a checkpoint being overwritten must not look complete
            for name in (MANIFEST_NAME, TRAINER_STATE_NAME):
                (folder / name).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        if self.args.should_save and folder.is_dir():  # unless rotation removed it
            self._warn_of_own_disks(folder)
            write_manifest(folder, self.args.world_size)
        self._saved_step = self.state.global_step

    @property
    def _saves_on_each_node(self) -> bool:
        """True if each machine keeps whole checkpoints. DeepSpeed and FSDP write some files on the first one only."""
        return self.args.save_on_each_node and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # transformers lets only the first process of all write weights, also with `save_on_each_node`
        each = self._saves_on_each_node
        if each:
            self.model.should_save_on_this_rank = lambda is_main_process: is_main_process
        try:
            super()._save(output_dir, state_dict)
        finally:
            if each:
                del self.model.should_save_on_this_rank

    def _warn_of_own_disks(self, folder: Path) -> None:
        """Warns once if other processes' files are not in the first one's checkpoint, as each machine keeps its own."""
        if self.args.save_only_model or self._saves_on_each_node or self._warned_of_own_disks:
            return
        count = self.args.world_size
        missing = [name for rank in range(count) for name in own_names(rank, count) if not (folder / name).exists()]
        if missing:
            self._warned_of_own_disks = True
            logger.warning(
                "%s has no %s: the machines do not share a disk, and no run can resume from what each has. %s.",
                folder, ", ".join(missing), WAY_OUT,
            )  # fmt: skip

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *args, **kwargs):
        if self.control.should_evaluate and self._saved_step == self.state.global_step:
            # End of an epoch whose last step is already saved: save again, so that a resumed run skips the evaluation
            self.control.should_save = True
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self._preemption is not None and self._preemption.stopped and self._saved_step != self.state.global_step:
            self._save_checkpoint(model, trial)  # `save_strategy="best"` may not have saved

    def _run_epoch(self, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resuming a finished run
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        rank, folder = self.accelerator.process_index, Path(output_dir)
        save_tree(folder / STATE_NAME.format(rank), self._state_to_save())
        references = self._followed_references()
        if references and (rank == 0 or self._sharded):
            save_tree(folder / REFERENCE_NAME.format(rank), references)
        # The main process writes the trainer state next, which marks the checkpoint as complete
        self.accelerator.wait_for_everyone()

    def _state_to_save(self) -> dict[str, Any]:
        generate_every = self.args.steps_per_generation * self.num_iterations
        epoch, share = divmod(self.state.epoch or 0.0, 1.0)
        state = {
            "settings": self._batch_settings(),
            "step": self._step,
            "metrics": {name: list(map(float, values)) for name, values in self._metrics["train"].items()},
            "table": self._table_to_save(),
            "loss": self._tr_loss,
            "last_logged": self._globalstep_last_logged,
            "entropy": [self.entropy_coef, self._last_world_entropy] if self.use_adaptive_entropy else None,
            # Position in an iterable dataset, whose epochs have no length
            "epoch": int(epoch),
            "batches": round(share * self.state.max_steps * self.args.gradient_accumulation_steps),
            "batch": None,
            **self._extra_state(),
        }
        if self._step % generate_every and self._buffered_inputs is not None:
            state["batch"] = [self._batch_to_save(batch) for batch in self._buffered_inputs]
        return state

    def _table_to_save(self) -> str | None:
        """The last generation batch's completions table, which TRL writes at each logging step, without images."""
        if not self.log_completions:
            return None
        logs = {name: list(values) for name, values in self._logs.items() if isinstance(values, deque)}
        logs |= {name: {k: list(v) for k, v in self._logs[name].items()} for name in ("rewards", "extra")}
        for name in ("prompt", "completion"):
            logs[name] = [strip_images_from_messages(messages) for messages in logs[name]]
        return json.dumps(logs | {"images": []}, default=str)

    def _extra_state(self) -> dict[str, Any]:
        """State of other parts of the trainer, restored by `_load_extra_state`."""
        return {}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `_extra_state` returned."""

    def _batch_settings(self) -> dict[str, Any]:
        """Settings that must be unchanged for a generation batch to continue."""
        return {name: getattr(self.args, name) for name in _BATCH_SETTINGS}

    def _batch_to_save(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch of the generation batch as tensors, lists and numbers."""
        return batch

    def _batch_from_save(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `_batch_to_save`."""
        return batch

    # Load

    def _read_checkpoint_state(self, checkpoint: Path) -> None:
        path = checkpoint / STATE_NAME.format(self.accelerator.process_index)
        if not path.exists():  # more processes than before: the first one's file has the shared state
            path = checkpoint / STATE_NAME.format(0)
        if not path.exists():
            logger.warning(
                "%s has no %s: it was not saved by this trainer. Parameters and optimizer are restored, but the run will "
                "not reproduce the one that was stopped: it generates a new batch, and prompts may repeat.",
                checkpoint,
                path.name,
            )
            return
        self._checkpoint_state = load_tree(path, self.accelerator.device)

    def _get_train_sampler(self, dataset=None):
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        epochs, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        state = self._checkpoint_state
        if isinstance(self.train_dataset, IterableDataset):
            if state is not None and not self.args.ignore_data_skip:
                epochs, batches = state["epoch"], state["batches"]
        elif isinstance(self._train_sampler, RepeatSampler):
            for _ in range(epochs):  # each pass draws its own order
                next(iter(self._train_sampler), None)
        return epochs, batches

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None and not (Path(resume_from_checkpoint) / SCHEDULER_NAME).exists():
            self._forward_schedule()
        return prepared

    def _forward_schedule(self) -> None:
        """Advances the learning-rate schedule, which was not saved, to the resumed update."""
        if self.is_deepspeed_enabled:  # DeepSpeed keeps its own schedules
            return
        if isinstance(self.lr_scheduler, (torch.optim.lr_scheduler.ReduceLROnPlateau, GreedyLR)):
            logger.warning("The schedule depends on past metrics that were not saved, so it restarts.")
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # no optimizer step yet
            for _ in range(self.state.global_step):
                self.lr_scheduler.step()

    def _load_rng_state(self, checkpoint):
        # transformers calls this after skipping to the run's position, right before the first update
        super()._load_rng_state(checkpoint)
        state = self._checkpoint_state
        if state is None:
            return
        if not self.args.auto_find_batch_size:  # it may restart training
            self._checkpoint_state = None
        self._load_extra_state(state)
        self._metrics["train"] = defaultdict(list, state["metrics"])
        self._tr_loss, self._globalstep_last_logged = state["loss"], state["last_logged"]
        if state["entropy"] is not None and self.use_adaptive_entropy:
            self.entropy_coef, self._last_world_entropy = state["entropy"]
        settings = self._batch_settings()
        changed = [name for name, value in settings.items() if state["settings"].get(name) != value]
        self._load_references(Path(checkpoint), "world_size" in changed)
        if changed:
            logger.warning(
                "%s changed since the checkpoint was saved (%s): its generation batch is dropped and a new one is "
                "generated.",
                ", ".join(f"`{name}`" for name in changed),
                checkpoint,
            )
            return
        self._step = state["step"]
        if state["table"] is not None and self.log_completions:
            for name, values in json.loads(state["table"]).items():
                for column, rows in values.items() if isinstance(values, dict) else [(None, values)]:
                    (self._logs[name] if column is None else self._logs[name][column]).extend(rows)
        if state["batch"] is not None:
            self._buffered_inputs = [self._batch_from_save(batch) for batch in state["batch"]]

    # A reference model that follows the policy

    @property
    def _sharded(self) -> bool:
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)

    def _followed_references(self) -> list[dict[str, torch.Tensor]]:
        """This process's part of each reference that follows the policy, by parameter name."""
        models = [
            self.accelerator.unwrap_model(callback.ref_model)
            for callback in self.callback_handler.callbacks
            if isinstance(callback, SyncRefModelCallback)
        ]
        return [{name: local_part(parameter) for name, parameter in model.named_parameters()} for model in models]

    def _load_references(self, checkpoint: Path, world_size_changed: bool) -> None:
        references = self._followed_references()
        if not references:
            return
        if self._sharded and world_size_changed:
            raise ValueError(
                "`sync_ref_model`: the reference was saved in shards, by a different number of processes. Resume with "
                "that number."
            )
        rank = self.accelerator.process_index if self._sharded else 0
        saved = load_tree(checkpoint / REFERENCE_NAME.format(rank))
        for reference, values in zip(references, saved, strict=True):
            for name, parameter in reference.items():
                parameter.copy_(values[name])
