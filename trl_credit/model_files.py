"""Resolves a user's `model` to files: a folder, hub id, adapter or the embedded model."""

import hashlib
import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from ._util.text import nearest


logger = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# Files that training or evaluation leaves beside the model
_STATE = {
    *("trainer_state.json", "optimizer.pt", "scheduler.pt", "training_args.bin"),
    *("all_results.json", "train_results.json", "eval_results.json", "run.json", "results.json"),
}
# A weights file is hashed by its length and this many blocks of this many bytes, including the first and the last.
# Training changes every block, and reading all 65 GB of a 32B model would take minutes.
_BLOCKS, _BLOCK = 64, 1 << 16


@dataclass(frozen=True)
class LocalModel:
    """A model's files: its folder or hub id, and its LoRA adapter if it is one.

    Args:
        path: Folder or hub id of the (base) model.
        adapter: Folder or hub id of the adapter, or `None`.
        revision: Revision of the model or adapter that the user named.
        trust_remote_code: Whether to run code shipped with it.
    """

    path: str
    adapter: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def find(
        cls,
        name: str | None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        *,
        field: str = "model",
        adapter: bool = True,
        needs: type | None = AutoTokenizer,
    ) -> "LocalModel":
        """Finds the files that a user's setting names.

        Args:
            name: A folder, a hub id or `trl_credit:quickstart`.
            revision: Revision of it.
            trust_remote_code: Whether to run code that comes with it.
            field: The setting, for messages.
            adapter: Whether it may be a LoRA adapter.
            needs: `AutoTokenizer` or `AutoProcessor`, if it must have one; else `None`.

        Raises:
            ValueError: There is no such model, or it has no configuration or tokenizer.
        """
        return _find(name, revision, trust_remote_code, field, adapter, needs)[0]

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
        return self.load(AutoTokenizer)

    def load(self, kind: Any) -> Any:
        """Loads an `AutoTokenizer` or `AutoProcessor`: the adapter's own, if saved with one, else the base model's."""
        if self.adapter:
            try:
                return kind.from_pretrained(
                    self.adapter, revision=self.revision, trust_remote_code=self.trust_remote_code
                )
            except (OSError, ValueError):
                logger.info("The adapter has no tokenizer: the base model's is used.")
        return kind.from_pretrained(self.path, revision=self.base_revision, trust_remote_code=self.trust_remote_code)

    def context(self) -> int | None:
        """Context length in tokens, if the config states it."""
        return getattr(self.config().get_text_config(), "max_position_embeddings", None)

    def fingerprint(self) -> dict[str, Any]:
        """Identifies weights and tokenizer, independent of where they are stored."""
        found = {"model": _fingerprint(self.path, self.base_revision)}
        if self.adapter:
            found["adapter"] = _fingerprint(self.adapter, self.revision)
        return found


def _find(
    name: str | None, revision: str | None, trust_remote_code: bool, field: str, adapter: bool, needs: Any
) -> tuple[LocalModel, Any]:
    """[`LocalModel.find`], and what it `needs`, loaded."""
    path = resolve_model(name, field)
    if (Path(path) / "model_index.json").is_file():
        raise ValueError(
            f"`{field}`: {name!r} is a pipeline of diffusers, which makes images, and this needs a language model. To train "
            "it, set `trainer: diffusion`."
        )
    try:
        base = base_of_adapter(path, revision, field)
    except OSError as error:
        raise ValueError(f"`{field}`: {name!r} cannot be read: {str(error).strip().splitlines()[0]}") from error
    if base and not adapter:
        raise ValueError(f"`{field}`: {name!r} is an adapter, and this must be a whole model: merge it first.")
    if base and any(Path(path).glob("model*.safetensors")):
        logger.warning("%s holds a whole model and an adapter: the adapter is loaded, on %s.", name, base)
    found = LocalModel(base or path, path if base else None, revision, trust_remote_code)
    try:
        found.config()
        return found, None if needs is None else found.load(needs)
    except Exception as error:  # tokenizers raise many kinds of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if reason.endswith(":"):  # transformers continues with a list
            reason = "no tokenizer can be made of its files; copy tokenizer.json and tokenizer_config.json there."
        kind = f"a model{' (or LoRA adapter)' * adapter}{' and its tokenizer' * (needs is not None)}"
        raise ValueError(
            f"`{field}`: {name!r} is neither a folder with {kind} nor one that the hub gives: {reason}"
        ) from error


def _fingerprint(path: str, revision: str | None) -> str:
    """`sha256:` of a folder's files, or `hub:` with the repository and commit."""
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


def pipeline_fingerprint(path: str, revision: str | None = None) -> dict[str, str]:
    """Identifies a diffusers pipeline: by its files, component by component, or by its name on the hub."""
    if not Path(path).is_dir():
        return {"model": f"hub:{path}@{revision or 'main'}"}
    return {folder.name: _fingerprint(str(folder), None) for folder in sorted(Path(path).iterdir()) if folder.is_dir()}


def _offsets(size: int) -> list[int]:
    """Offsets of a file's blocks, which cover all of a small file."""
    last = max(0, size - _BLOCK)
    if size <= _BLOCKS * _BLOCK:
        return list(range(0, size, _BLOCK))
    return [last * i // (_BLOCKS - 1) for i in range(_BLOCKS)]


# The embedded models' folders below `trl_credit.toy`
_EMBEDDED = {"trl_credit:quickstart": "model", "trl_credit:digits": "digits_model"}
# Their places in an installation, in this and earlier releases
_PLACES = {("trl_credit", "toy", folder): name for name, folder in _EMBEDDED.items()}
_PLACES["trl_credit", "quickstart", "model"] = "trl_credit:quickstart"


def embedded_model_path(name: str = "trl_credit:quickstart") -> str:
    """Folder of an embedded model: the quickstart's, or `trl_credit:digits`, a diffusers pipeline."""
    return str(files("trl_credit.toy") / _EMBEDDED[name])


def is_embedded(name: str) -> bool:
    """True if a name is meant to be an embedded model's."""
    return name.startswith("trl_credit:")


def resolve_model(name: str | None, field: str = "model_name_or_path") -> str:
    """The path or hub id of `model_name_or_path`; `trl_credit:quickstart` and `trl_credit:digits` are embedded models."""
    if not name:
        raise ValueError(f"`{field}` is not set.")
    if is_embedded(name):
        if name not in _EMBEDDED:
            raise ValueError(f"`{field}`: unknown {name!r}. {nearest(name, _EMBEDDED)}")
        return embedded_model_path(name)
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"`{field}`: {name!r} is a file: name its folder.")
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"`{field}`: there is no folder {name!r} (looked from {Path.cwd()}).")
    return name


def base_of_adapter(adapter: str, revision: str | None = None, field: str = "model_name_or_path") -> str | None:
    """The path or hub id of an adapter's base model; `None` if it is not an adapter.

    Raises:
        ValueError: The adapter names no base model, or one that does not exist.
    """
    if not find_adapter_config_file(adapter, revision=revision):
        return None
    try:
        base = PeftConfig.from_pretrained(adapter, revision=revision).base_model_name_or_path
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`{field}`: cannot read adapter_config.json in {adapter!r}: {str(error).splitlines()[0]}"
        ) from error
    if base and not Path(base).exists() and Path(base).parts[-3:] in _PLACES:
        return embedded_model_path(_PLACES[Path(base).parts[-3:]])  # the path is from another installation
    try:
        return resolve_model(base)
    except ValueError:
        problem = f"names the base model {base!r}, which does not exist" if base else "does not name its base model"
        raise ValueError(
            f"`{field}`: the adapter {adapter!r} {problem} (looked from {Path.cwd()}). Set "
            "`base_model_name_or_path` in its adapter_config.json."
        ) from None


def check_model(model: str, train_dataset, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Raises `ValueError` unless the config and tokenizer of the model, or of an adapter and its base, load and fit the
    prompts."""
    _, processing_class = _find(model, revision, trust_remote_code, "model_name_or_path", True, AutoProcessor)
    images = [name for name in ("image", "images") if name in (train_dataset.column_names or ())]
    if images and not isinstance(processing_class, ProcessorMixin):
        raise ValueError(
            f"The data has a column {images[0]!r}, which TRL passes to the model, but {model!r} reads text only. Drop "
            "or rename the column, or use a vision-language model."
        )
    prompt = next(iter(train_dataset), {}).get("prompt")
    if isinstance(prompt, list) and getattr(processing_class, "chat_template", None) is None:
        raise ValueError(
            f"The prompts are chat messages, but the tokenizer of {model!r} has no chat template. Set `plain_prompts: true` "
            "to make plain-text prompts, or use a model with a chat template."
        )
