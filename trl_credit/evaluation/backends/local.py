"""What the backends that load the model themselves share: its files, its fingerprint, its prompts."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ...rewards.thinking import opened_tag
from ...train import base_of_adapter, resolve_model
from .base import Request, SamplingSettings


logger = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# What a training run or an evaluation leaves beside the model
_STATE = {
    *("trainer_state.json", "optimizer.pt", "scheduler.pt", "training_args.bin"),
    *("all_results.json", "train_results.json", "eval_results.json", "run.json", "results.json"),
}
# Of a weights file: its length, and this many blocks of this many bytes, the first and the last among them. Training
# changes every block; reading 65 GB of a 32B model in whole would take minutes.
_BLOCKS, _BLOCK = 64, 1 << 16


@dataclass(frozen=True)
class LocalModel:
    """A model's files: its folder or hub id, and its LoRA adapter if it is one.

    Args:
        path: Folder or hub id of the (base) model.
        adapter: Folder or hub id of the adapter, or `None`.
        revision: Revision of what the user named.
        trust_remote_code: Whether to run code that comes with it.
    """

    path: str
    adapter: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def find(cls, name: str | None, revision: str | None = None, trust_remote_code: bool = False) -> "LocalModel":
        """What a user's `model` names.

        Raises:
            ValueError: There is no such model, or it has no configuration or tokenizer.
        """
        try:
            path = resolve_model(name)
        except ValueError as error:
            raise ValueError(str(error).replace("`model_name_or_path`", "`model`")) from None
        try:
            base = base_of_adapter(path, revision)
        except ValueError as error:
            raise ValueError(str(error).replace("`model_name_or_path`", "`model`", 1)) from None
        except OSError as error:
            raise ValueError(f"`model`: {name!r} cannot be read: {str(error).strip().splitlines()[0]}") from error
        try:
            found = cls(base or path, path if base else None, revision, trust_remote_code)
            found.config()
            found.tokenizer()
        except (OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if reason.endswith(":"):  # transformers goes on with a list
                reason = "no tokenizer can be made of its files; copy tokenizer.json and tokenizer_config.json there."
            raise ValueError(
                f"`model`: {name!r} is neither a folder with a model (or LoRA adapter) and its tokenizer nor one that the "
                f"hub gives: {reason}"
            ) from error
        return found

    @staticmethod
    def is_local(path: str) -> bool:
        return Path(path).is_dir()

    @property
    def base_revision(self) -> str | None:
        return None if self.adapter else self.revision

    def config(self):
        return AutoConfig.from_pretrained(
            self.path, revision=self.base_revision, trust_remote_code=self.trust_remote_code
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The adapter's own tokenizer, if it was saved with one, else the base model's."""
        if self.adapter:
            try:
                return AutoTokenizer.from_pretrained(
                    self.adapter, revision=self.revision, trust_remote_code=self.trust_remote_code
                )
            except (OSError, ValueError):
                logger.info("The adapter has no tokenizer: the base model's is used.")
        return AutoTokenizer.from_pretrained(
            self.path, revision=self.base_revision, trust_remote_code=self.trust_remote_code
        )

    def context(self) -> int | None:
        """Tokens of the context, if the configuration tells."""
        return getattr(self.config().get_text_config(), "max_position_embeddings", None)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the weights and the tokenizer, wherever they lie."""
        found = {"model": _fingerprint(self.path, self.base_revision)}
        if self.adapter:
            found["adapter"] = _fingerprint(self.adapter, self.revision)
        return found


def _fingerprint(path: str, revision: str | None) -> str:
    """`sha256:` of a folder's files, or `hub:` and the commit."""
    if not LocalModel.is_local(path):
        file = next(
            filter(
                None,
                (
                    cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
                    for name in ("config.json", "adapter_config.json")
                ),
            )
        )
        return f"hub:{path}@{Path(file).parent.name}"  # snapshots/COMMIT/config.json
    digest = hashlib.sha256()
    for file in sorted(Path(path).iterdir()):
        weights = file.suffix in _WEIGHTS
        if (
            file.is_file()
            and (weights or file.suffix in (".json", ".jinja", ".model", ".txt"))
            and file.name not in _STATE
        ):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with open(file, "rb") as opened:
                if weights:
                    for offset in _offsets(file.stat().st_size):
                        opened.seek(offset)
                        digest.update(opened.read(_BLOCK))
                else:
                    digest.update(opened.read())
    return f"sha256:{digest.hexdigest()}"


def _offsets(size: int) -> list[int]:
    """Where the blocks of a file begin: all of a small one."""
    last = max(0, size - _BLOCK)
    if size <= _BLOCKS * _BLOCK:
        return list(range(0, size, _BLOCK))
    return [last * i // (_BLOCKS - 1) for i in range(_BLOCKS)]


@dataclass(frozen=True)
class Rendered:
    """A request with its prompt's token ids; `opened` is the thinking tag that the prompt has opened already, which
    belongs before the completion's text."""

    request: Request
    ids: list[int]
    opened: str = ""


def render(
    requests: Sequence[Request], tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any]
) -> list[Rendered]:
    """Token ids of the prompts; equal prompts are tokenized once.

    Raises:
        ValueError: Messages for a tokenizer without a chat template.
    """
    cache: dict[Any, tuple[list[int], str]] = {}
    rendered = []
    for request in requests:
        plain = isinstance(request.prompt, str)
        key = request.prompt if plain else tuple((m["role"], m["content"]) for m in request.prompt)
        if key not in cache:
            if plain:
                cache[key] = tokenizer(request.prompt)["input_ids"], opened_tag(request.prompt)
            else:
                check_chat_template(tokenizer)
                text = tokenizer.apply_chat_template(
                    list(request.prompt), tokenize=False, add_generation_prompt=True, **chat_template_kwargs
                )
                cache[key] = tokenizer(text, add_special_tokens=False)["input_ids"], opened_tag(text)
        rendered.append(Rendered(request, *cache[key]))
    return rendered


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ValueError` for a tokenizer without a chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "The prompts are chat messages, but the model's tokenizer has no chat template: set `plain_prompts: true`."
        )


def fit(sampling: SamplingSettings, rendered: Sequence[Rendered], context: int | None) -> SamplingSettings:
    """The settings with `max_tokens` cut to what the context leaves to the longest of the prompts, for all alike: so it
    depends neither on the batch nor on what is finished already.

    Raises:
        ValueError: It leaves nothing.
    """
    if context is None or not rendered:
        return sampling
    longest = max(rendered, key=lambda item: len(item.ids))
    room = context - len(longest.ids)
    if room < 1:
        request = longest.request
        raise ValueError(
            f"The prompt of {request.task!r}, problem {request.problem}, has {len(longest.ids)} tokens, and the model's "
            f"context {context}: nothing is left for an answer. Use a model with a longer context, or other tasks."
        )
    if room < sampling.max_tokens:
        logger.warning(
            "`max_tokens` is cut from %d to %d: the model's context has %d tokens, the longest prompt %d.",
            sampling.max_tokens,
            room,
            context,
            len(longest.ids),
        )
    return replace(sampling, max_tokens=min(room, sampling.max_tokens))
