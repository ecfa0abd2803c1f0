"""Evaluates during training, with the trainer's own generation engine."""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from .._util.files import RunFolderError
from .._util.settings import AtLeast1, check_value
from .._util.text import nearest, safe
from ..evaluation.backends.base import Backend, BackendError, Emit, Generation, Request, SamplingSettings
from ..evaluation.backends.prompts import Rendered, fit, render
from ..evaluation.backends.transformers import generate_batch, to_generation
from ..evaluation.config import EvalConfig, pattern_of, prompts_of
from ..evaluation.run import evaluate, make_requests
from ..evaluation.tasks import load_tasks
from ..evaluation.terminal import show


logger = logging.getLogger(__name__)

# Fields that the training run determines
_TRAINER_FIELDS = {
    *("model", "recipe", "output_dir", "backend", "dtype", "revision", "trust_remote_code", "attn_implementation"),
    *("vllm_kwargs", "base_url", "concurrency", "max_retries", "request_timeout", "extend"),
}
# Requests per vLLM call; their samples are written once the whole call is finished
_VLLM_CHUNK = 256


class TrainerBackend(Backend):
    """Generates with the model in training, sharded or not: with vLLM if the trainer uses it (samples then have no
    seeds of their own), else with transformers.

    Args:
        trainer: The trainer.
        batch_size: Completions per process at a time (transformers).
        chat_template_kwargs: Arguments of the chat template.
    """

    name = "trainer"

    def __init__(self, trainer: GRPOTrainer, batch_size: int = 32, chat_template_kwargs: dict[str, Any] | None = None):
        self.trainer, self.batch_size = trainer, batch_size
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.tokenizer = trainer._tokenizer
        self._filler: Rendered | None = None

    def identity(self) -> dict[str, Any]:
        return {"weights": weights_fingerprint(self.trainer.model), "vllm": bool(self.trainer.use_vllm)}

    def prepare(self, requests: Sequence[Request], sampling: SamplingSettings) -> SamplingSettings:
        rendered = render(requests, self.tokenizer, self.chat_template_kwargs)
        self._filler = rendered[0]
        context = getattr(self.trainer.model.config.get_text_config(), "max_position_embeddings", None)
        if self.trainer.use_vllm and self.trainer.args.vllm_max_model_length:
            context = min(context or self.trainer.args.vllm_max_model_length, self.trainer.args.vllm_max_model_length)
        return fit(sampling, rendered, context)

    def generate(self, requests: Sequence[Request], sampling: SamplingSettings, emit: Emit) -> None:
        failures = []

        def keep(request: Request, generation: Generation) -> None:
            # If one process stopped alone, the others would wait forever
            if not failures:
                try:
                    emit(request, generation)
                except RunFolderError as error:
                    failures.append(str(error))

        rendered = render(requests, self.tokenizer, self.chat_template_kwargs)
        rendered.sort(key=lambda item: len(item.ids))
        size = _VLLM_CHUNK if self.trainer.use_vllm else self.batch_size
        batches = [rendered[start : start + size] for start in range(0, len(rendered), size)]
        # Sharded models and vLLM servers need every process in every call
        longest = max(gather_object([len(batches)]))
        if not longest:
            return
        run = self._vllm_batch if self.trainer.use_vllm else generate_batch
        with _generating(self.trainer) as model:
            for number in range(longest):
                batch, to = (batches[number], keep) if number < len(batches) else ([self._filler], _nowhere)
                run(model, self.tokenizer, batch, sampling, to, self.trainer.accelerator.device)
        failures = gather_object(failures)
        if failures:
            raise RunFolderError(failures[0])

    def _vllm_batch(
        self, model, tokenizer, batch: Sequence[Rendered], sampling: SamplingSettings, emit: Emit, device: torch.device
    ) -> None:
        """`generate_batch` with the trainer's vLLM."""
        engine = self.trainer.vllm_generation
        # The vLLM server gives every process an equal slice
        width = max(gather_object([len(batch)]))
        prompts = [item.ids for item in batch] + [self._filler.ids] * (width - len(batch))
        ours = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "max_completion_length": sampling.max_tokens,
            "generation_kwargs": {"stop": list(sampling.stop)} if sampling.stop else {},
        }
        before = {name: getattr(engine, name) for name in ours}
        try:
            for name, value in ours.items():
                setattr(engine, name, value)
            completions, _ = self.trainer._generate_single_turn(prompts, None, {}, 1)
        finally:
            for name, value in before.items():
                setattr(engine, name, value)
        for item, ids in zip(batch, completions, strict=False):
            ended = len(ids) < sampling.max_tokens or ids[-1] in self.trainer.eos_token_ids
            emit(item.request, to_generation(ids, ended, item, tokenizer, sampling.stop))


def _nowhere(request: Request, generation: Generation) -> None:
    """Discards filler generations that keep processes in step."""


@contextlib.contextmanager
def _generating(trainer: GRPOTrainer) -> Iterator[torch.nn.Module]:
    """The trainer's model in eval mode, prepared for generation as TRL does; its mode is restored afterwards."""
    if trainer.use_vllm:
        yield trainer.model
        return
    training = trainer.model.training
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model,
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
    ):
        try:
            yield model.eval()
        finally:
            trainer.model.train(training)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Fingerprint of the current weights, from each parameter's sums in float64; the same on every process.

    Each process sums its own shard, so the fingerprint changes with the number of processes.
    """
    sums = []
    for name, parameter in model.named_parameters():
        local = getattr(parameter, "ds_tensor", parameter)
        local = local.to_local() if hasattr(local, "to_local") else local
        values = local.detach().flatten()
        wide = torch.float64 if values.device.type in ("cpu", "cuda") else torch.float32  # that others may lack
        norm = torch.linalg.vector_norm(values, 1, dtype=wide)
        sums.append([name, values.sum(dtype=wide).item(), norm.item()])
    return "sums:" + sha256(json.dumps(gather_object([sums])).encode()).hexdigest()


class TrainingEvaluation(TrainerCallback):
    """Evaluates every N updates, after that update's checkpoint, and at the end.

    Args:
        config: The settings; samples and reports go to eval/step-N in the trainer's output folder.
        every: Updates between two evaluations; `None` evaluates only at the end.

    Raises:
        ValueError: The tasks cannot be loaded.
    """

    def __init__(self, config: EvalConfig, every: int | None = None):
        self.config, self.every = config, every
        self.tasks = load_tasks(config)
        self.evaluated: int | None = None

    @classmethod
    def from_recipe(cls, settings: dict[str, Any], script_args, training_args) -> "TrainingEvaluation":
        """Builds the evaluation that a recipe's `eval` mapping asks for.

        Settings that it leaves out come from the recipe (`prompts_of`, and `max_completion_length` for `max_tokens`),
        unless it names a preset, which brings its own.

        Raises:
            ValueError: A field is unknown, wrong or has no effect here, or a task cannot be loaded.
        """
        settings = dict(settings)
        every = settings.pop("every", None)
        if every is not None:
            try:
                every = check_value("every", every, AtLeast1)
            except ValueError as error:
                raise ValueError(f"`eval`: {error}") from None
        known = {field.name for field in fields(EvalConfig)} - _TRAINER_FIELDS
        for name in settings:
            if name in _TRAINER_FIELDS:
                raise ValueError(f"`eval`: `{name}` has no effect in a training run, which evaluates its own model.")
            if name not in known:
                raise ValueError(f"`eval`: unknown field {name!r}. {nearest(name, [*known, 'every'])}")
        inherited = {}
        if settings.get("preset", "default") == "default":
            recipe = vars(script_args) | {"chat_template_kwargs": training_args.chat_template_kwargs}
            inherited = {"max_tokens": training_args.max_completion_length, **prompts_of(recipe)}
            if settings.get("plain_prompts"):
                inherited = {n: v for n, v in inherited.items() if n not in ("system_prompt", "chat_template_kwargs")}
        else:
            inherited = {
                "plain_prompts": script_args.plain_prompts or False,
                "answer_pattern": pattern_of(vars(script_args)),
            }
        try:
            return cls(EvalConfig(**inherited | settings), every)
        except (ValueError, TypeError) as error:
            raise ValueError(f"`eval`: {error}") from error

    def attach(self, trainer: GRPOTrainer) -> None:
        """Adds this as a callback of the trainer.

        Raises:
            ValueError, BackendError: The prompts do not fit the model.
        """
        self.trainer = trainer
        self.backend = TrainerBackend(trainer, self.config.batch_size, self.config.template_kwargs())
        self.backend.prepare(make_requests(self.tasks, 1, 0), self.config.sampling())
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        # At the start of the next update, the last update's checkpoint is written
        if self.every and state.global_step and state.global_step % self.every == 0:
            try:
                self.evaluate()
            except (RunFolderError, BackendError) as error:  # raised on every process
                logger.error("Evaluation after update %d: %s Training continues.", state.global_step, error)

    def at_end(self) -> None:
        """Evaluates the trained model and prints the numbers, unless its last update was already evaluated.

        Raises:
            RunFolderError, BackendError: The evaluation failed.
        """
        if self.trainer.state.global_step != self.evaluated:
            self.evaluate()

    def evaluate(self) -> dict[str, Any]:
        """Evaluates the current model and logs the numbers as `eval_TASK/avg@n` and so on."""
        step = self.trainer.state.global_step
        path = Path(self.trainer.args.output_dir) / "eval" / f"step-{step}"
        config = replace(self.config, model=f"step {step}", output_dir=str(path))
        results = evaluate(config, self.backend, self.tasks, in_training=True)
        self.evaluated = step
        if self.trainer.accelerator.is_main_process:
            show(results)
            print(safe(path))
        # Not GRPOTrainer.log, which would consume the metrics that the trainer's next log averages
        Trainer.log(self.trainer, {f"eval_{name}": value for name, value in scalars(results).items()})
        return results


def scalars(results: dict[str, Any]) -> dict[str, float]:
    """The results' numbers for trackers, by name."""
    n = results["settings"]["n"]
    parts = dict(results["tasks"])
    if len(parts) > 1:
        parts["overall"] = results["overall"]
    found = {}
    for task, part in parts.items():
        values = {
            f"avg@{n}": part["avg"],
            "stderr": part["stderr"],
            f"pass@{n}": part["pass"][str(n)],
            f"maj@{n}": part["maj"][str(n)],
            "truncated": part["truncated"],
            "unparsed": part["unparsed"],
            "mean_tokens": part["tokens"]["mean"] if part["tokens"] else None,
        }
        found |= {f"{task}/{name}": value for name, value in values.items() if value is not None}
    return found
