"""TRL's GRPOTrainer for diffusion and flow-matching models: a step of the sampler is a token.

TRL keeps the data, the sampler of prompts, generation batches and their reuse, rewards, group advantages, the clipped
loss, accumulation, the optimizer, checkpoints and PEFT; trl-credit's extras and credit pass work as they do for text. What
differs is the rollout (a diffusers pipeline) and the log-probs (of the sampler's steps).
"""

import copy
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object, is_peft_model
from peft import get_peft_model_state_dict
from torch import nn
from transformers.trainer_utils import HubStrategy
from trl import GRPOConfig, GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import get_config_model_id

from .._util.text import hub_id, nearest
from ..credit_pass import CreditResult
from ..extras.trainer import bind_arguments, check_arguments, default_output_dir
from ..methods import PCPO, CreditMethod, Uniform
from ..rewards.images import prompt_text
from ..samplers.pipelines import GAIN, STD, PipelineSampler, load_pipeline
from ..samplers.policy import DenoiserPolicy, step_tokenizer
from ..samplers.recorder import Trajectory
from ..samplers.schedule import step_kl
from ..signals.sampler_steps import SAMPLER
from .diffusion_config import DiffusionGRPOConfig
from .exactness import check_credit
from .grpo import CreditGRPOTrainer, set_quick_start


logger = get_logger(__name__)

# Keys of the dataset row that a rollout adds
IMAGES, TRAJECTORY = "images", "trajectory"


class _SamplerTrainer(GRPOTrainer):
    """The rollout and the log-probs of a sampler's steps. Stands below the extras, directly above TRL's trainer."""

    sampler: PipelineSampler
    kl_beta = 0.0
    _rows: list[dict[str, Any]] | None = None  # dataset rows of the generation batch in progress
    _micro_batch: dict[str, Any] | None = None  # what the loss reads
    _reference: nn.Module | None = None
    _kl: torch.Tensor | None = None
    clean_estimates: torch.Tensor | None = None  # (B, K, ...) latents, during an update that will be shown

    def __init__(self, *args, **kwargs):
        training_args, model = kwargs["args"], kwargs["model"]
        # TRL's KL penalty is an estimate from log-probs; ours is exact, and its own term
        self.kl_beta, training_args.beta = training_args.beta, 0.0
        # The pipeline is loaded with them, and TRL would say that they are ignored
        options, training_args.model_init_kwargs = training_args.model_init_kwargs, None
        reference = None
        if self.kl_beta and kwargs["peft_config"] is None and not is_peft_model(model):
            reference = copy.deepcopy(model).requires_grad_(False)
        try:
            super().__init__(*args, **kwargs)
        finally:
            training_args.beta, training_args.model_init_kwargs = self.kl_beta, options
        if self.is_fsdp_enabled:  # as accelerate prepares FSDP2, a state dict can hold no constants such as positions
            for module in self.accelerator.unwrap_model(self.model).modules():
                module._non_persistent_buffers_set.update(module._buffers)
        self.rollout_func = _rollout  # set here, because TRL warns about one that it gets as an argument
        if reference is not None:
            if self.is_deepspeed_enabled:
                reference = prepare_deepspeed(reference, self.accelerator)
            elif self.is_fsdp_enabled:
                reference = prepare_fsdp(reference, self.accelerator)
            else:
                reference = self.accelerator.prepare_model(reference, evaluation_mode=True)
            self._reference = reference

    def _generate_and_score_completions(self, inputs):
        inputs[:] = [dict(row) for row in inputs]  # rows of a stream may be one object, and each gets its own image
        before, self._rows = self._rows, inputs  # a further round of dynamic sampling runs within its batch
        try:
            batch = super()._generate_and_score_completions(inputs)
            batch.update({SAMPLER + name: value for name, value in self._trajectory_of_rows().items()})
            if before is None and self.log_completions and self.log_multimodal:
                self._logs[IMAGES].extend(gather_object([[row[IMAGES]] for row in inputs]))
        finally:
            self._rows = before
        return batch

    def _generate(self, prompts):
        generated = super()._generate(prompts)
        trajectories = generated[5].get(TRAJECTORY)
        if trajectories is not None:  # the old policy's log-probs need them before TRL gives rows what a rollout adds
            for row, trajectory in zip(self._rows, trajectories, strict=True):
                row[TRAJECTORY] = trajectory
        return generated

    def _trajectory_of_rows(self) -> dict[str, torch.Tensor]:
        rows = [row[TRAJECTORY] for row in self._rows]
        where = self.args.latents_device or self.accelerator.device  # those of other processes come from main memory
        return {name: torch.stack([row[name].to(where) for row in rows]) for name in rows[0]}

    @property
    def _shows_update(self) -> bool:
        """True if `clean_estimates` are needed."""
        return False

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        if self._micro_batch is None:  # the policy that generated, for TRL's ratio
            trajectory = self._trajectory_of_rows()
        else:
            prefix = len(SAMPLER)
            trajectory = {name[prefix:]: value for name, value in self._micro_batch.items() if name.startswith(SAMPLER)}
        device = self.accelerator.device
        count, steps = trajectory["steps"].shape
        rows = torch.arange(count, device=device).repeat_interleave(steps)
        columns = torch.arange(steps, device=device).repeat(count)
        # TRL asks for the old policy's log-probs of a whole generation batch, in parts of `batch_size` images
        size = self.args.denoiser_batch_size or (batch_size or count) * steps
        logps, kl, clean, idle = [], [], [], 0.0
        keeps_clean = self._micro_batch is not None and self._shows_update
        for number in range(self._number_of_parts(-(-len(rows) // size))):
            part = slice(number * size, (number + 1) * size)
            works = number * size < len(rows)  # else only to stay in step with the other processes
            at, step = (rows[part], columns[part]) if works else (rows[:1], columns[:1])
            first, last = at[0].item(), at[-1].item() + 1
            chunk = {name: value[first:last].to(device) for name, value in trajectory.items()}
            at = at - first
            with self.accelerator.autocast():
                prediction = self.sampler.predict(model, chunk, at, step)
            divergence = None
            if self.kl_beta and self._micro_batch is not None:
                divergence = self._divergence(model, prediction, chunk, at, step)
            if not works:
                idle = idle + 0.0 * prediction.sum()
                continue
            logps.append(self.sampler.log_prob(prediction, chunk, at, step))
            if keeps_clean:
                clean.append(self.sampler.clean_estimate(prediction.detach(), chunk, at, step))
            if divergence is not None:
                kl.append(divergence)
        self._kl = torch.cat(kl).view(count, steps) if kl else None
        self.clean_estimates = torch.cat(clean).unflatten(0, (count, steps)) if clean else None
        entropy = None
        if compute_entropy:  # of a Gaussian, per dimension
            entropy = trajectory["coefficients"][..., STD].to(device).log() + 0.5 * math.log(2 * math.pi * math.e)
        return torch.cat(logps).view(count, steps) + idle, entropy, None

    def _number_of_parts(self, parts: int) -> int:
        """The most parts that any process has: sharded models gather, and DDP may broadcast, in each forward."""
        if self.accelerator.num_processes == 1 or not self.args.denoiser_batch_size:
            return parts
        mine = torch.tensor([[parts]], device=self.accelerator.device)  # two-dimensional: no value per row
        return int(self.accelerator.gather(mine).max())

    def _divergence(self, model, prediction, trajectory, at, step) -> torch.Tensor:
        """(R,) KL divergence from the frozen model."""
        with torch.no_grad(), self.accelerator.autocast():
            if self._reference is not None:
                reference = self.sampler.predict(self._reference, trajectory, at, step)
            else:
                with self.accelerator.unwrap_model(model).disable_adapter():
                    reference = self.sampler.predict(model, trajectory, at, step)
        coefficients = trajectory["coefficients"][at, step]
        return step_kl(prediction, reference, coefficients[:, GAIN], coefficients[:, STD])

    def _compute_loss(self, model, inputs):
        self._micro_batch = inputs  # not a copy: token advantages are written into it
        try:
            loss = super()._compute_loss(model, inputs)
            if self._kl is not None:
                mode = "train" if self.model.training else "eval"
                kl = (self._kl * inputs["completion_mask"]).sum() / inputs["completion_mask"].sum().clamp(min=1)
                self._metrics[mode]["kl"].append(self.accelerator.gather(kl.detach()).mean().item())
                parts = self.current_gradient_accumulation_steps if mode == "train" else 1
                loss = loss + self.kl_beta * kl / parts
        finally:
            self._micro_batch = self._kl = self.clean_estimates = None
        return loss


def _rollout(prompts: list, trainer: "DiffusionGRPOTrainer") -> dict[str, Any]:
    """TRL's `rollout_func`: samples an image for each prompt."""
    args, tokenizer = trainer.args, trainer.processing_class
    rows = args.sampling_batch_size or args.per_device_train_batch_size
    texts = [prompt_text(prompt, i, "The pipeline") for i, prompt in enumerate(prompts)]

    def policy(**arguments) -> torch.Tensor:  # text encoders and VAE keep their own dtype
        with trainer.accelerator.autocast():
            return trainer.model_wrapped(**arguments)

    trajectories, images = trainer.sampler.sample(texts, policy, rows)
    if args.dynamic_sampling and trainer.accelerator.num_processes > 1:  # groups may move to another process
        trajectories = [Trajectory({name: value.cpu() for name, value in row.items()}) for row in trajectories]
    ends = tokenizer.eos_token_id
    return {
        "prompt_ids": [[ends] for _ in prompts],
        # The last trained step is the end, so that TRL counts no image as cut off
        "completion_ids": [[step + 2 for step in row["steps"].tolist()[:-1]] + [ends] for row in trajectories],
        "logprobs": [row["log_probs"].tolist() for row in trajectories],
        IMAGES: images,
        TRAJECTORY: trajectories,
    }


class DiffusionGRPOTrainer(CreditGRPOTrainer, _SamplerTrainer):
    """
    [`CreditGRPOTrainer`] for diffusers pipelines. A token is a step of the sampler; a completion is an image.

    It takes the arguments of [`~trl.GRPOTrainer`], except that `model` is a diffusers pipeline or its name or path. The
    pipeline's `transformer` or `unet` is trained, whole or with a LoRA adapter (`peft_config`); its text encoders and VAE
    stay frozen. `uniform` is Flow-GRPO's and DanceGRPO's loss; [`PCPO`] decides how much of an image's advantage each
    step gets.

    Reward functions get `images`, a list of PIL images, beside TRL's arguments: `f(images, prompts, **columns)`.

    Exact resume, dynamic sampling, skipping images without an advantage and the guards work as they do for text.
    `credit_log_steps` shows images, with the estimate of the clean image and the credit at each step
    ([`~trl_credit.trainer.image_log.ImageLog`]).

    Logged besides: `sampling/replay_difference/mean` and `/max`, the absolute difference between the log-probs of a step
    in the update and in the rollout while the policy is the same. It must stay below the clip range; if not, the run warns
    once. `entropy` is that of the sampler's noise, which the policy does not change.

    Attributes:
        pipeline (`DiffusionPipeline`): The pipeline, with the trained denoiser in place.
        sampler (`PipelineSampler`): Samples with it and repeats its calls.

    Raises:
        ValueError: A pipeline, setting or method that cannot be trained.

    Example:

    ```python
    from peft import LoraConfig
    from trl_credit import DiffusionGRPOConfig, DiffusionGRPOTrainer

    trainer = DiffusionGRPOTrainer(
        model="stabilityai/stable-diffusion-3.5-medium",
        reward_funcs=reward,
        args=DiffusionGRPOConfig(
            output_dir="out",
            credit="pcpo",
            num_inference_steps=10,
            guidance_scale=4.5,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=32,
            steps_per_generation=64,
            denoiser_batch_size=4,
        ),
        train_dataset=dataset,
        peft_config=LoraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"]),
    )
    trainer.train()
    ```
    """

    _policy_kind: ClassVar[str] = "steps"

    @functools.wraps(GRPOTrainer.__init__)
    def __init__(self, *args, **kwargs):
        arguments = bind_arguments(self, args, kwargs)
        model, training_args = arguments["model"], arguments["args"]
        for name in ("tools", "environment_factory", "rollout_func", "quantization_config", "processing_class"):
            if arguments.get(name):
                raise ValueError(f"`{name}` has no meaning for an image model. Remove it.")
        if training_args is None:
            training_args = DiffusionGRPOConfig(default_output_dir(model, (self._preset or Uniform).name.upper()))
        if not isinstance(training_args, DiffusionGRPOConfig):
            raise ValueError(
                "`args` must be a DiffusionGRPOConfig, which has the sampler's settings, got "
                f"{type(training_args).__name__}."
            )
        evaluated = arguments["eval_dataset"]
        for dataset in (
            arguments["train_dataset"],
            *(evaluated.values() if isinstance(evaluated, Mapping) else [evaluated]),
        ):
            columns = set(getattr(dataset, "column_names", None) or ())
            if columns and "prompt" not in columns:
                raise ValueError(f"The dataset has no column 'prompt'. {nearest('prompt', columns)}")
            if taken := columns & {"image", IMAGES, TRAJECTORY}:
                raise ValueError(
                    f"The dataset's column {min(taken)!r} has the name of what the sampler adds. Rename or remove it."
                )
        rewards = arguments["reward_funcs"] or []
        for reward in rewards if isinstance(rewards, list) else [rewards]:
            if isinstance(reward, (str, nn.Module)):
                raise ValueError(
                    "`reward_funcs`: a reward model scores text. Give a function of images, such as one of "
                    "`trl_credit.rewards.images`, imported."
                )
        arguments["args"] = training_args
        # Before a pipeline is loaded
        self.credit_method = self._resolve_credit(training_args)
        check_credit(self.credit_method, training_args)
        check_arguments(type(self), arguments)
        self.pipeline = self._load(model, training_args)
        self.sampler = PipelineSampler(self.pipeline, **training_args.call_arguments)
        if type(self.sampler.scheduler) is not type(self.pipeline.scheduler):
            logger.warning(
                "%s has no stochastic step that is known here: training samples with a DDIMScheduler of the same betas. The "
                "pipeline keeps its own.",
                type(self.pipeline.scheduler).__name__,
            )
        source = model if isinstance(model, str) else self.pipeline.config.get("_name_or_path") or ""
        denoiser = getattr(self.pipeline, self.sampler.component)
        if getattr(denoiser, "peft_config", None):
            raise ValueError(
                "The pipeline has an adapter loaded. Merge it first (`fuse_lora()`, then `unload_lora_weights()`), or "
                "load the pipeline without it."
            )
        if getattr(arguments["peft_config"], "lora_dropout", 0):
            logger.warning(
                "`lora_dropout` has no effect: a denoiser runs in eval mode, so that log-probs can be repeated."
            )
        for name, component in self.pipeline.components.items():
            if isinstance(component, nn.Module):
                if any(hasattr(parameter, "ds_id") for parameter in component.parameters()):
                    raise ValueError(
                        f"ZeRO-3 partitioned the pipeline's `{name}` as it was loaded. Load the pipeline before the "
                        "config is made, or give its name or path as `model`."
                    )
                component.requires_grad_(component is denoiser)
                component.eval()
        if training_args.push_to_hub:
            _push_at_the_end(training_args)
        arguments["model"] = DenoiserPolicy(denoiser, source)
        _check_targets(arguments["peft_config"], denoiser)
        if getattr(arguments["peft_config"], "task_type", None) is not None:  # a denoiser is none of PEFT's tasks
            arguments["peft_config"] = copy.copy(arguments["peft_config"])
            arguments["peft_config"].task_type = None
        arguments["processing_class"] = step_tokenizer(training_args.num_inference_steps)
        super().__init__(**arguments)
        self._place_pipeline()
        self._warned_of_replay = False
        self._sampled_at: int | None = None
        self.credit_observers.append(self._measure_replay)

    def _make_credit_log(self, steps, completions):
        from .image_log import ImageLog

        return ImageLog(self, steps, completions)

    @property
    def _shows_update(self) -> bool:
        return self._credit_log is not None and self._credit_log.wants and self.accelerator.is_main_process

    @staticmethod
    def _load(model: Any, args: GRPOConfig) -> Any:
        if not isinstance(model, str):
            return model
        options = dict(args.model_init_kwargs or {})
        if options.pop("attn_implementation", None) is not None:
            raise ValueError("`attn_implementation` has no effect on a diffusers pipeline. Remove it.")
        dtype = options.pop("dtype", None)
        if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"`dtype` must be float32, bfloat16 or float16, got {dtype!r}.")
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        options = {key: value for key, value in options.items() if value is not None}
        return load_pipeline(model, dtype, **options)

    def _place_pipeline(self) -> None:
        """Moves the frozen components to the device of this process."""
        for name, component in self.pipeline.components.items():
            if isinstance(component, nn.Module) and name != self.sampler.component:
                component.to(self.accelerator.device)

    def _generate_and_score_completions(self, inputs):
        if self.model.training:
            self._sampled_at = self.state.global_step
        return super()._generate_and_score_completions(inputs)

    # How far the update's log-probs are from the rollout's

    @torch.no_grad()
    def _measure_replay(self, batch: dict[str, Any], result: CreditResult) -> None:
        if not self.model.training or self._sampled_at != self.state.global_step:
            return  # the policy has changed since
        found = torch.zeros(3, device=self.accelerator.device)
        if result.view is not None and result.inputs.mask.any():
            mask = result.inputs.mask
            difference = (result.inputs.policy_logps - result.view["sampling_per_token_logps"]).abs()[mask]
            found = torch.stack([difference.sum(), mask.sum().to(difference), difference.max()])
        gathered = self.accelerator.gather(found.unsqueeze(0))
        total, count, most = gathered[:, 0].sum().item(), gathered[:, 1].sum().item(), gathered[:, 2].max().item()
        if not count:
            return
        metrics = self._metrics["train"]
        metrics["sampling/replay_difference/mean"].append(total / count)
        metrics["sampling/replay_difference/max"].append(most)
        if total / count > self.args.epsilon and not self._warned_of_replay:
            self._warned_of_replay = True
            logger.warning(
                "The clip range (`epsilon` %g) is below the noise of repeating the sampler's steps (%.2g on average): steps "
                "are clipped before anything is learned. Raise `epsilon`, or train in a more precise dtype.",
                self.args.epsilon,
                total / count,
            )

    # Checkpoints

    def _extra_state(self):
        return super()._extra_state() | {"sampler": json.dumps(self.sampler.template)}

    def _load_extra_state(self, state):
        super()._load_extra_state(state)
        self._saved_template = json.loads(state["sampler"]) if "sampler" in state else None

    def _batch_from_save(self, batch):
        self.sampler.template = self._saved_template  # how to repeat the calls that made this batch
        where = self.args.latents_device or self.accelerator.device
        batch = super()._batch_from_save(batch)
        return {name: value.to(where) if name.startswith(SAMPLER) else value for name, value in batch.items()}

    def _batch_settings(self):
        names = (
            "num_inference_steps",
            "train_steps",
            "train_steps_drawn",
            "eta",
            "sde",
            "height",
            "width",
            "guidance_scale",
            "pipeline_kwargs",
        )
        return super()._batch_settings() | {
            name: json.dumps(getattr(self.args, name), sort_keys=True, default=str) for name in names
        }

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves what diffusers loads. A checkpoint is TRL's; with LoRA on one process or DDP, diffusers loads it, too.

        A LoRA adapter is written as PEFT does and as `pytorch_lora_weights.safetensors`, for the pipeline's
        `load_lora_weights`. If the denoiser was trained whole, the pipeline is written, for `from_pretrained`.
        """
        folder = output_dir or self.args.output_dir
        adapter = is_peft_model(self.accelerator.unwrap_model(self.model))
        is_checkpoint = _internal_call and output_dir is not None  # `push_to_hub` calls it without a folder
        if is_checkpoint or adapter:
            super().save_model(output_dir, _internal_call=True)
        # Gathering shards for a second file would double the time of a sharded run's checkpoints
        if is_checkpoint and (not adapter or self.is_deepspeed_enabled or self.is_fsdp_enabled):
            return
        # Gathers shards, so every process takes part
        state = self.accelerator.get_state_dict(self.model_wrapped if self.is_deepspeed_enabled else self.model)
        if self.args.should_save:
            (self._save_adapter if adapter else self._save_pipeline)(folder, state)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:  # as `Trainer.save_model` does
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_adapter(self, folder: str, state: dict[str, torch.Tensor]) -> None:
        if not hasattr(self.pipeline, "save_lora_weights"):  # PEFT's format is all there is
            return
        model, component = self.accelerator.unwrap_model(self.model), self.sampler.component
        layers = get_peft_model_state_dict(model, state_dict=state)
        self.pipeline.save_lora_weights(
            folder,
            **{
                f"{component}_lora_layers": {name.removeprefix(_PEFT_PREFIX): value for name, value in layers.items()},
                f"{component}_lora_adapter_metadata": _adapter_metadata(model),
            },
        )

    def _save_pipeline(self, folder: str, state: dict[str, torch.Tensor]) -> None:
        component = self.sampler.component
        trained = getattr(self.pipeline, component)
        with torch.device("meta"):
            whole = type(trained).from_config(trained.config)
        saved = dict(trained.named_buffers()) | {name.removeprefix("denoiser."): value for name, value in state.items()}
        whole.load_state_dict({name: saved[name] for name in whole.state_dict()}, assign=True)
        vars(self.pipeline)[component] = whole  # the trained one may be sharded
        try:
            self.pipeline.save_pretrained(folder)
        finally:
            vars(self.pipeline)[component] = trained

    def _describe_use(self, card):
        adapter = is_peft_model(self.accelerator.unwrap_model(self.model))
        name = self.hub_model_id or Path(self.args.output_dir).resolve().name
        base = get_config_model_id(self.model.config) or ""
        card.data.library_name, card.data.pipeline_tag = "diffusers", "text-to-image"
        if type(self.pipeline).__module__.partition(".")[0] != "diffusers" or (adapter and not base):
            set_quick_start(card, "Load it with the class of its base pipeline.")
            return
        base = hub_id(base) or Path(base).name
        lines = ["```python", "from diffusers import DiffusionPipeline", ""]
        lines.append(f'pipeline = DiffusionPipeline.from_pretrained("{base if adapter else name}")')
        if adapter:
            lines.append(f'pipeline.load_lora_weights("{name}")')
        scale = f", guidance_scale={self.sampler.guidance_scale:g}" if self.args.guidance_scale is not None else ""
        lines.append(f'pipeline("A red fox", num_inference_steps={self.args.num_inference_steps}{scale}).images[0]')
        lines.append("```")
        set_quick_start(card, "\n".join(lines))


class PCPOTrainer(DiffusionGRPOTrainer):
    """[`DiffusionGRPOTrainer`] with the credit method [`PCPO`] (arXiv 2509.25774)."""

    _preset: ClassVar[type[CreditMethod] | None] = PCPO


def _push_at_the_end(args: DiffusionGRPOConfig) -> None:
    """What is sent with a checkpoint is a fixed list of TRL's files, which no pipeline loads."""
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"`hub_strategy` ({args.hub_strategy.value!r}) sends checkpoints, which diffusers does not load. Set "
            "`hub_strategy: end`, which sends what it does."
        )
    if args.hub_strategy is HubStrategy.EVERY_SAVE:  # the default
        logger.warning("The model is sent to the hub at the end of the run, not with each checkpoint.")
        args.hub_strategy = HubStrategy.END


_PEFT_PREFIX = "base_model.model.denoiser."


def _check_targets(peft_config: Any, denoiser: nn.Module) -> None:
    """Raises `ValueError` for a LoRA config without modules, which PEFT cannot guess for a denoiser."""
    if (
        peft_config is None
        or getattr(peft_config, "target_modules", None)
        or getattr(peft_config, "target_parameters", None)
    ):
        return
    names = sorted(
        {name.rpartition(".")[2] for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
    )
    raise ValueError(
        "`lora_target_modules` must name the denoiser's layers to adapt, such as to_q, to_k, to_v and to_out.0. Its linear "
        f"layers: {', '.join(names)}."
    )


def _adapter_metadata(model: nn.Module) -> dict[str, Any]:
    """The adapter's config as plain values, as diffusers stores it."""
    config = model.peft_config[model.active_adapter].to_dict()
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    return {name: value for name, value in plain.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
