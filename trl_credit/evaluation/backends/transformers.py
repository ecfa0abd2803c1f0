"""Generation with transformers, in batches of prompts of similar length. Each completion has its own random numbers."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..._trl import create_model_from_path, pad
from ...model_files import LocalModel
from .base import Backend, BackendError, Emit, Generation, Request, SamplingSettings, process_state
from .prompts import Rendered, fit, limit_of, render


logger = logging.getLogger(__name__)


class _SeededSampling(LogitsProcessor):
    """Samples each row's token by inverse transform sampling with the row's own random numbers, and masks all others.

    A row's random numbers depend only on its seed, not on the other rows or the order of batches.
    """

    def __init__(self, seeds: Sequence[int], max_tokens: int, device: torch.device):
        # MPS has no float64
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        rows = [torch.rand(max_tokens, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        self.uniforms = torch.stack(rows).to(device, self.dtype)
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        cumulated = scores.to(self.dtype).softmax(-1).cumsum(-1)
        threshold = self.uniforms[:, self.step, None] * cumulated[:, -1:]
        # First token whose cumulative probability exceeds the threshold, so its own probability is above 0
        token = torch.searchsorted(cumulated, threshold, right=True).clamp(max=scores.shape[-1] - 1)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


class _Checked(LogitsProcessor):
    """Stops the run if the logits contain NaN, instead of sampling an arbitrary token."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if scores.isnan().any():
            raise BackendError("The model's logits are NaN: its weights are broken, or too large for its `dtype`.")
        return scores


class _Finished(StoppingCriteria):
    """Marks rows as done at the end of sequence, at a stop text or at their own token limit, and passes each on at that
    step. Stop texts are searched in the completion only, not across its border with the prompt."""

    def __init__(
        self,
        width: int,
        eos_ids: Sequence[int],
        stop: StopStringCriteria | None,
        limits: Sequence[int],
        device: torch.device,
        on_finish,
    ):
        self.width, self.eos_ids = width, torch.tensor(list(eos_ids), device=device)
        self.limits = torch.tensor(list(limits), device=device)
        self.stop, self.on_finish = stop, on_finish
        self.done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        if self.done is None:
            self.done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        stops = torch.isin(input_ids[:, -1], self.eos_ids)
        if self.stop is not None:
            stops = stops | self.stop(input_ids[:, self.width :], scores)
        full = self.limits <= input_ids.shape[1] - self.width
        for row in ((stops | full) & ~self.done).nonzero().flatten().tolist():
            self.on_finish(row, input_ids[row], ended=bool(stops[row]))
        self.done = self.done | stops | full
        return self.done


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a completion: the model's (Qwen's chat models have several) and the tokenizer's."""
    ids = model.generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return list(dict.fromkeys([*ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]))


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Cuts the text before the earliest stop text."""
    return text[: min((found for found in map(text.find, stop) if found >= 0), default=len(text))]


def to_generation(
    ids: Sequence[int], ended: bool, item: Rendered, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]
) -> Generation:
    """Converts a completion's tokens to its generation."""
    text = item.opened + cut_at_stop(tokenizer.decode(ids, skip_special_tokens=True), stop)
    return Generation(text, len(ids), "stop" if ended else "length", tuple(ids))


@torch.no_grad()
def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[Rendered],
    sampling: SamplingSettings,
    emit: Emit,
    device: torch.device,
) -> None:
    """Completes one batch on a device with `model.generate`."""
    eos_ids = eos_token_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos_ids or [0])[0]
    prompts = [torch.tensor(item.ids) for item in batch]
    input_ids = pad(prompts, padding_value=pad_id, padding_side="left")
    attention_mask = pad([torch.ones_like(ids) for ids in prompts], padding_value=0, padding_side="left")
    width = input_ids.shape[1]

    def on_finish(row: int, ids: torch.Tensor, ended: bool) -> None:
        item = batch[row]
        emit(item.request, to_generation(ids[width:].tolist(), ended, item, tokenizer, sampling.stop))

    limits = [limit_of(item.request, sampling) for item in batch]
    processors = LogitsProcessorList([_Checked()])
    if sampling.temperature > 0:
        if sampling.temperature != 1:
            processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k > 0:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            processors.append(MinPLogitsWarper(sampling.min_p))
        seeds = [item.request.seed for item in batch]
        processors.append(_SeededSampling(seeds, max(limits), device))
    stop = StopStringCriteria(tokenizer, list(sampling.stop)) if sampling.stop else None
    finished = _Finished(width, eos_ids, stop, limits, device, on_finish)
    # `generate` runs greedily: the processors do the sampling
    with _without_own_config(model):
        model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=GenerationConfig(
                do_sample=False,
                repetition_penalty=sampling.repetition_penalty,  # applied before the processors
                max_new_tokens=max(limits),
                eos_token_id=eos_ids or None,
                pad_token_id=pad_id,
                bos_token_id=tokenizer.bos_token_id,
                disable_compile=True,
            ),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([finished]),
        )


@contextlib.contextmanager
def _without_own_config(model: PreTrainedModel) -> Iterator[None]:
    """Hides the model's own generation_config, which `generate` would use for everything it is not given."""
    models = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    own = [(owner, owner.generation_config) for owner in models if "generation_config" in vars(owner)]
    try:
        for owner, _ in own:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, config in own:
            owner.generation_config = config


class TransformersBackend(Backend):
    """Generates with transformers on this process's device. With several processes, each generates its own share.

    A sample's random numbers are its own, so its text depends on the batch only through the model's arithmetic: padding
    and batch size change the logits by rounding, which can change a token (hardly ever in float32, often in bfloat16).

    Args:
        model: The model's files.
        dtype: Dtype of the weights. `auto` is the checkpoint's, but float32 on a CPU.
        attn_implementation: Attention implementation of transformers.
        batch_size: Completions generated at once.
        chat_template_kwargs: Arguments of the chat template.
    """

    name = "transformers"

    def __init__(
        self,
        model: LocalModel,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        batch_size: int = 32,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.files, self.attn_implementation, self.batch_size = model, attn_implementation, batch_size
        self.device = process_state().device
        self.dtype = "float32" if dtype == "auto" and self.device.type == "cpu" else dtype
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"`dtype`: unknown {dtype!r}. Known: auto, float32, bfloat16, float16.")
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.model = None

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.files.tokenizer()

    def identity(self) -> dict[str, Any]:
        return {**self.files.fingerprint(), "dtype": self.dtype, "attn_implementation": self.attn_implementation}

    def prepare(self, requests: Sequence[Request], sampling: SamplingSettings) -> SamplingSettings:
        return fit(sampling, render(requests, self.tokenizer, self.chat_template_kwargs), self.files.context())

    def load(self) -> PreTrainedModel:
        """Loads the model in eval mode, with its adapter (if any) applied but not merged."""
        model = create_model_from_path(
            self.files.path,
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            revision=self.files.base_revision,
            trust_remote_code=self.files.trust_remote_code,
            device_map={"": self.device} if self.device.type != "cpu" else None,
        )
        if self.files.adapter:
            from peft import PeftModel

            try:
                model = PeftModel.from_pretrained(model, self.files.adapter, revision=self.files.revision)
            except SafetensorError as error:
                raise BackendError(f"Cannot read the adapter's weights in {self.files.adapter!r}: {error}") from error
        if self.device.type == "cpu" and sum(p.numel() for p in model.parameters()) > 1e9:
            logger.warning("There is no GPU: a model of this size takes very long on the CPU.")
        return model.to(self.device).eval()

    def generate(self, requests: Sequence[Request], sampling: SamplingSettings, emit: Emit) -> None:
        rendered = render(requests, self.tokenizer, self.chat_template_kwargs)
        rendered.sort(key=lambda item: len(item.ids))  # stable sort: samples of a problem stay together
        if rendered and self.model is None:
            self.model = self.load()
        for start in range(0, len(rendered), self.batch_size):
            batch = rendered[start : start + self.batch_size]
            try:
                generate_batch(self.model, self.tokenizer, batch, sampling, emit, self.device)
            except torch.OutOfMemoryError as error:
                raise BackendError(
                    f"Out of memory with `batch_size` {self.batch_size}: set a smaller one, or a smaller `max_tokens` "
                    f"({sampling.max_tokens}). The finished samples are kept."
                ) from error

    def close(self) -> None:
        self.model = None
