"""Generation with vLLM in this process. All requests are queued at once, each with its own seed."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from ..._util.text import safe
from ...model_files import LocalModel
from .base import Backend, BackendError, Emit, Generation, Request, SamplingSettings, process_state
from .prompts import fit, limit_of, render


logger = logging.getLogger(__name__)

# Arguments of `vllm.LLM` that change speed and memory only. A run may continue with others.
_THROUGHPUT = {
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"),
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "cpu_offload_gb"),
    *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "enforce_eager", "block_size", "max_lora_rank"),
    *("enable_prefix_caching", "enable_chunked_prefill", "async_scheduling", "disable_custom_all_reduce"),
    *("disable_log_stats", "max_parallel_loading_workers", "download_dir"),
}

# Values that vLLM 0.31 accepts for `max_lora_rank` (vllm/config/lora.py)
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VLLMBackend(Backend):
    """Generates with vLLM's engine in this process, on as many GPUs as `vllm_kwargs` asks for.

    Each sample has its own seed, but vLLM's kernels round differently depending on the batch, which occasionally
    changes a token. vLLM's batch-invariant mode avoids this on hardware that supports it.

    Args:
        model: The model's files. An adapter is applied as a vLLM LoRA request, without merging.
        dtype: Dtype of the weights. `auto` is vLLM's: the checkpoint's, unless that is float32 or the GPU lacks it. On a
            CPU it is the checkpoint's always.
        chat_template_kwargs: Arguments of the chat template.
        vllm_kwargs: Arguments of `vllm.LLM`, such as `tensor_parallel_size`.

    Raises:
        ValueError: vLLM is not installed, there is no GPU, or there are several processes.
    """

    name = "vllm"

    def __init__(
        self,
        model: LocalModel,
        dtype: str = "auto",
        chat_template_kwargs: dict[str, Any] | None = None,
        vllm_kwargs: dict[str, Any] | None = None,
    ):
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"`backend: vllm` needs vLLM ({error}): pip install 'trl-credit[vllm]', or set another `backend`."
            ) from error
        if process_state().num_processes > 1:
            raise ValueError(
                "`backend: vllm` runs in one process: set the number of GPUs by `vllm_kwargs` (tensor_parallel_size), or "
                "start servers and use `backend: server`."
            )
        self.files = model
        self.chat_template_kwargs, self.vllm_kwargs = chat_template_kwargs or {}, vllm_kwargs or {}
        self.dtype = self._dtype(self.vllm_kwargs.get("dtype", dtype))
        self.llm = None
        self._notes: list[str] = []

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.files.tokenizer()

    def identity(self) -> dict[str, Any]:
        return {**self.files.fingerprint(), "dtype": self.dtype, "vllm_kwargs": self._identifying(self.vllm_kwargs)}

    def upgraded(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Earlier releases left `auto` to vLLM, which makes float32 checkpoints bfloat16 on a CPU, and took all of
        `vllm_kwargs`."""
        kwargs = identity.get("vllm_kwargs") or {}
        dtype = self._dtype(kwargs.get("dtype", identity.get("dtype")))
        if identity.get("dtype") == "auto" and "dtype" not in kwargs and dtype == "float32":
            dtype = "bfloat16"
        return {**identity, "dtype": dtype, "vllm_kwargs": self._identifying(kwargs)}

    def _dtype(self, dtype: str) -> str:
        """The dtype to ask vLLM for. On a GPU its own `auto` knows what the card and its kernels can do."""
        from vllm.platforms import current_platform

        return checkpoint_dtype(self.files) if dtype == "auto" and current_platform.is_cpu() else dtype

    def _identifying(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Those of `vllm_kwargs` that determine the samples."""
        # What `max_model_len` else does to the samples is in the sampling settings: `prepare` cuts `max_tokens`
        left_out = _THROUGHPUT - ({"max_model_len"} if has_longrope(self.files) else set()) | {"dtype"}
        return {name: value for name, value in kwargs.items() if name not in left_out}

    def prepare(self, requests: Sequence[Request], sampling: SamplingSettings) -> SamplingSettings:
        sizes = [size for size in (self.files.context(), self.vllm_kwargs.get("max_model_len")) if size is not None]
        rendered = render(requests, self.tokenizer, self.chat_template_kwargs)
        return fit(sampling, rendered, min(sizes, default=None))

    def load(self):
        """Starts the engine.

        Raises:
            BackendError: It cannot be started.
        """
        from vllm import LLM

        arguments = {
            "model": self.files.path,
            "revision": self.files.base_revision,
            "trust_remote_code": self.files.trust_remote_code,
            "seed": 0,
            "generation_config": "vllm",  # ignore the model's own defaults
        }
        if self.files.adapter:
            from peft import PeftConfig

            config = PeftConfig.from_pretrained(self.files.adapter, revision=self.files.revision)
            rank = max(config.r, *config.rank_pattern.values(), 1)
            allowed = next((size for size in _LORA_RANKS if size >= rank), rank)
            arguments.update(enable_lora=True, max_lora_rank=allowed)
        try:
            llm = LLM(**{**arguments, **self.vllm_kwargs, "dtype": self.dtype})
        except Exception as error:  # vLLM raises many kinds: no GPU, no memory, an unknown argument
            raise BackendError(
                f"vLLM cannot be started: {_cause(error)}. See `dtype` and `vllm_kwargs` (max_model_len, "
                "gpu_memory_utilization, tensor_parallel_size), or use `backend: transformers`."
            ) from error
        used, stated = _name(llm.llm_engine.model_config.dtype), checkpoint_dtype(self.files)
        if self.dtype == "auto" and stated not in ("auto", used):
            self._notes = [f"vLLM's `dtype: auto` made the {stated} checkpoint {used}"]
            logger.warning("%s: set `dtype` for another.", self._notes[0])
        return llm

    def generate(self, requests: Sequence[Request], sampling: SamplingSettings, emit: Emit) -> None:
        if not requests:
            return
        if self.llm is None:
            self.llm = self.load()
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        lora = None
        if self.files.adapter:
            from huggingface_hub import snapshot_download
            from vllm.lora.request import LoRARequest

            local = LocalModel.is_local(self.files.adapter)
            path = self.files.adapter if local else snapshot_download(self.files.adapter, revision=self.files.revision)
            lora = LoRARequest("adapter", 1, path)
        engine, rendered = self.llm.llm_engine, render(requests, self.tokenizer, self.chat_template_kwargs)
        for number, item in enumerate(rendered):
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                max_tokens=limit_of(item.request, sampling),
                stop=list(sampling.stop) or None,
                seed=item.request.seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(number), {"prompt_token_ids": item.ids}, params, lora_request=lora)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    item, completion = rendered[int(output.request_id)], output.outputs[0]
                    finish = "length" if completion.finish_reason == "length" else "stop"
                    ids = tuple(completion.token_ids)
                    emit(item.request, Generation(item.opened + completion.text, len(ids), finish, ids))

    def notes(self) -> list[str]:
        return self._notes

    def close(self) -> None:
        self.llm = None


def checkpoint_dtype(files: LocalModel) -> str:
    """The dtype that a model's config states, or `auto` if it states none."""
    config = files.config()
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return "auto" if dtype is None else _name(dtype)


def has_longrope(files: LocalModel) -> bool:
    """True if vLLM scales positions by `max_model_len`: with longrope, all of them once it exceeds the length of the
    pretraining."""
    rope = getattr(files.config().get_text_config(), "rope_parameters", None) or {}
    return any(isinstance(part, dict) and part.get("rope_type") == "longrope" for part in (rope, *rope.values()))


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _cause(error: Exception) -> str:
    """What went wrong, on one line of at most 800 characters. The first line of pydantic's messages is only a count."""
    if isinstance(error, ValidationError):
        parts = []
        for found in error.errors(include_url=False, include_context=False, include_input=False):
            place, said = ".".join(map(str, found["loc"])), found["msg"].removeprefix("Value error, ")
            parts.append(f"{place}: {said}" if place else said)
        text = "; ".join(parts)
    else:
        text = str(error)
    text = safe(" ".join(text.split())).rstrip(".") or type(error).__name__
    return text if len(text) <= 800 else f"{text[:800]} ..."
