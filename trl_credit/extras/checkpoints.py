"""Checks that a checkpoint has every file that a run needs to resume, unchanged since it was written.

This trainer writes a manifest last: for every file its size and a checksum of both ends, where headers and tables of
contents are. A checkpoint without one (from an older release, or from TRL) is judged by its files alone: those that a
run needs must exist and open.
"""

import json
import logging
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import (
    OPTIMIZER_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from accelerate.utils.constants import FSDP_MODEL_NAME
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_SAFE_WEIGHTS_NAME
from peft.utils import WEIGHTS_NAME as ADAPTER_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


logger = logging.getLogger(__name__)

MANIFEST_NAME = "credit_manifest.json"
STATE_NAME = "credit_state_{}.safetensors"
# Present while transformers' own SIGTERM checkpoint is being written
_INCOMPLETE_NAME = "checkpoint-is-incomplete.txt"
# Bytes at each end of a file that its checksum covers
_END = 1 << 16
# The model's weights, except DeepSpeed's
_WEIGHTS = (
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS_INDEX_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    f"*/{ADAPTER_SAFE_WEIGHTS_NAME}",
    f"*/{ADAPTER_WEIGHTS_NAME}",
    f"{FSDP_MODEL_NAME}*",
)


class DamagedError(ValueError):
    """A checkpoint cannot be resumed from; the message names the file."""


def write_manifest(checkpoint: Path, processes: int) -> None:
    """Atomically records the files of a finished checkpoint, except the model card, which may be edited later.

    Args:
        checkpoint: The checkpoint's folder.
        processes: How many processes wrote it.
    """
    files = {
        path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _checksum(path)]
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST_NAME, "README.md") and path.suffix != ".tmp"
    }
    temporary = checkpoint / f"{MANIFEST_NAME}.tmp"
    temporary.write_text(json.dumps({"files": files, "processes": processes}, indent=0))
    os.replace(temporary, checkpoint / MANIFEST_NAME)


def check_files(checkpoint: Path) -> None:
    """Checks that a checkpoint is complete and unchanged. Reads little of each file.

    Raises:
        DamagedError: The checkpoint is incomplete, or a file is missing, changed or does not open.
    """
    try:
        _check_files(checkpoint)
    except DamagedError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _check_files(checkpoint: Path) -> None:
    if (checkpoint / _INCOMPLETE_NAME).exists():
        raise DamagedError("is incomplete")
    try:
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError) as error:
        # transformers writes it last, once all processes are done
        recorded = (checkpoint / MANIFEST_NAME).exists()
        problem = f": its {TRAINER_STATE_NAME} is damaged or missing" * recorded
        raise DamagedError(f"is incomplete{problem}") from error
    recorded = _check_recorded(checkpoint)
    _check_needed(checkpoint)
    for name in recorded or [path.relative_to(checkpoint).as_posix() for path in sorted(checkpoint.rglob("*"))]:
        _check_opens(checkpoint, checkpoint / name)


def is_model_only(checkpoint: Path) -> bool:
    """True if a complete checkpoint was saved with `save_only_model`: no optimizer, schedule or random state."""
    return not (_deepspeed(checkpoint) or _optimizer(checkpoint) or (checkpoint / SCHEDULER_NAME).exists())


def names_read_by_all(checkpoint: Path) -> list[str]:
    """Names in a complete checkpoint, of files and folders, that every process reads to resume."""
    patterns = (TRAINER_STATE_NAME, "latest", *(() if _deepspeed(checkpoint) else _WEIGHTS))
    patterns += (SCHEDULER_NAME, f"{OPTIMIZER_NAME}.*", f"{OPTIMIZER_NAME}_*")
    return sorted({path.relative_to(checkpoint).as_posix() for name in patterns for path in checkpoint.glob(name)})


def _checksum(path: Path) -> int:
    """Checksum of both ends of a file: detects a truncated, zero-filled file and a changed header."""
    with path.open("rb") as file:
        value = zlib.crc32(file.read(_END))
        size = path.stat().st_size
        if size > _END:
            file.seek(max(_END, size - _END))
            value = zlib.crc32(file.read(), value)
    return value


def _check_recorded(checkpoint: Path) -> list[str]:
    """Checks and returns the files in the manifest, if it exists. Other files are the user's."""
    path = checkpoint / MANIFEST_NAME
    if not path.exists():
        return []
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        recorded = {str(name): (int(size), int(checksum)) for name, (size, checksum) in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"is damaged: {MANIFEST_NAME} cannot be read") from error
    for name, (size, checksum) in recorded.items():
        file = checkpoint / name
        if not file.is_file():
            raise DamagedError(f"is damaged: {name} is missing")
        if file.stat().st_size != size:
            raise DamagedError(f"is damaged: {name} has {file.stat().st_size} bytes, but {size} were written")
        if _checksum(file) != checksum:
            raise DamagedError(
                f"is damaged: {name} has changed since it was written (if you changed it on purpose, remove {MANIFEST_NAME})"
            )
    return list(recorded)


# Files that a run needs


def _check_needed(checkpoint: Path) -> None:
    deepspeed = _deepspeed(checkpoint)
    if not deepspeed and not any(any(checkpoint.glob(pattern)) for pattern in _WEIGHTS):
        raise DamagedError(f"is damaged: the model's weights ({SAFE_WEIGHTS_NAME}) are missing")
    for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        _check_shards(checkpoint, name)
    for path in checkpoint.glob("*/*.distcp"):
        if not (path.parent / ".metadata").exists():
            raise DamagedError(f"is damaged: {path.parent.name}/.metadata is missing")
    rng, states = (
        {int(found[1]) for path in checkpoint.iterdir() if (found := re.fullmatch(pattern, path.name))}
        for pattern in (r"rng_state_(\d+)\.pth", r"credit_state_(\d+)\.safetensors")
    )
    alone = (checkpoint / "rng_state.pth").exists()
    optimizer, scheduler = deepspeed or _optimizer(checkpoint), (checkpoint / SCHEDULER_NAME).exists()
    if not (optimizer or scheduler or alone or rng or states):
        return  # `save_only_model`
    if not optimizer:
        raise DamagedError(f"is damaged: the optimizer's state ({OPTIMIZER_NAME}.pt) is missing")
    if not scheduler and not deepspeed:  # DeepSpeed keeps its schedules elsewhere
        raise DamagedError(f"is damaged: {SCHEDULER_NAME} is missing")
    if alone:
        return
    # One of each per process, but TRL's checkpoints have no credit state. Another node's files may be on its own disk
    expected = set(range(max(rng | states, default=0) + 1))
    if missing := sorted(expected - rng):
        raise DamagedError(f"is damaged: rng_state{f'_{missing[0]}' * (len(expected) > 1)}.pth is missing")
    if states and (missing := sorted(expected - states)):
        raise DamagedError(f"is damaged: {STATE_NAME.format(missing[0])} is missing")


def _check_shards(checkpoint: Path, name: str) -> None:
    path = checkpoint / name
    if not path.exists():
        return
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"is damaged: {name} cannot be read") from error
    for shard in shards:
        if not (checkpoint / shard).is_file():
            raise DamagedError(f"is damaged: {shard} is missing")


def _optimizer(checkpoint: Path) -> bool:
    """True if optimizer state exists: one file, or with sharded FSDP a folder or one file per process."""
    return any(checkpoint.glob(f"{OPTIMIZER_NAME}.*")) or any(checkpoint.glob(f"{OPTIMIZER_NAME}_*"))


def _deepspeed(checkpoint: Path) -> bool:
    """True for a DeepSpeed checkpoint; checks that its files are present."""
    folders = [path for path in checkpoint.glob("global_step*") if path.is_dir()]
    if not folders:
        if (checkpoint / "latest").exists():
            raise DamagedError("is damaged: DeepSpeed's folder global_step* is missing")
        return False
    try:
        folder = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise DamagedError("is damaged: DeepSpeed's file latest is missing") from error
    if not folder.is_dir() or folder == checkpoint:
        raise DamagedError(f"is damaged: {folder.name or 'the folder named in latest'} is missing")
    # ZeRO-3 saves a model state per process, else there is one; without ZeRO it includes the optimizer
    names = {path.name for path in folder.iterdir()}
    pattern = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_(model|optim)_states\.pt")
    found = {(match[3], int(match[1])): name for name in names if (match := pattern.fullmatch(name))}
    if not any(name.endswith("_model_states.pt") for name in names):
        raise DamagedError(f"is damaged: the model states in {folder.name} are missing")
    ranks = {rank for _, rank in found}
    for kind in {kind for kind, _ in found}:
        missing = sorted(set(range(max(ranks) + 1)) - {rank for of, rank in found if of == kind})
        if missing:
            raise DamagedError(f"is damaged: the {kind} states of process {missing[0]} in {folder.name} are missing")
    if not any(kind == "optim" for kind, _ in found) and any(kind == "model" for kind, _ in found):
        raise DamagedError(f"is damaged: the optim states in {folder.name} are missing")
    return True


# Opening each file


def _check_opens(checkpoint: Path, path: Path) -> None:
    name = path.relative_to(checkpoint).as_posix()
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # reads the header and compares the length
                pass
        elif path.suffix in (".pt", ".pth", ".bin"):
            _check_archive(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.name == ".metadata":
            _check_distributed(path.parent)
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedError(f"is damaged: {name} does not open ({reason})") from error


def _check_archive(path: Path) -> None:
    with path.open("rb") as file:
        begins = file.read(4)
    if begins[:1] == b"\x80":  # torch's format before 1.6, without a table of contents
        return
    if begins != b"PK\x03\x04":
        raise zipfile.BadZipFile("not a torch archive")
    with zipfile.ZipFile(path) as archive:  # reads the table of contents, which is at the end
        if not archive.namelist():
            raise zipfile.BadZipFile("the archive is empty")


def _check_distributed(folder: Path) -> None:
    """Checks that each part of a torch.distributed checkpoint lies within its file."""
    from torch.distributed.checkpoint import FileSystemReader

    try:
        stored = FileSystemReader(folder).read_metadata().storage_data.values()
        ends = [(part.relative_path, part.offset + part.length) for part in stored]
    except Exception as error:  # a truncated pickle can raise anything
        raise ValueError("its table of contents cannot be read") from error
    for name, end in ends:
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if (folder / name).stat().st_size < end:
            raise ValueError(f"{name} is truncated")


def save_tree(path: Path, tree: Any) -> None:
    """Atomically writes nested mappings and lists of tensors, numbers, text and `None` as one safetensors file.

    Raises:
        TypeError: A value has another type; the message names its place.
    """
    tensors: dict[str, torch.Tensor] = {}

    def encode(value: Any, place: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[place] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": place}
        if isinstance(value, dict):
            return {"dict": {str(key): encode(item, f"{place}/{key}") for key, item in value.items()}}
        if isinstance(value, (list, tuple)):
            return [encode(item, f"{place}/{i}") for i, item in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{place or 'the tree'} is a {type(value).__name__}, which has no safe format.")

    metadata = {"tree": json.dumps(encode(tree, ""))}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata)
    os.replace(temporary, path)


def load_tree(path: Path, device: torch.device | str = "cpu") -> Any:
    """Reads what [`save_tree`] wrote; tuples come back as lists."""
    with safe_open(path, framework="pt") as file:

        def decode(value: Any) -> Any:
            if isinstance(value, list):
                return [decode(item) for item in value]
            if not isinstance(value, dict):
                return value
            if "tensor" in value:
                return file.get_tensor(value["tensor"]).to(device)
            return {key: decode(item) for key, item in value["dict"].items()}

        return decode(json.loads(file.metadata()["tree"]))


class ResumeError(ValueError):
    """There is no checkpoint to resume from, or it is damaged."""


def is_complete(checkpoint: Path) -> bool:
    """True if a checkpoint is complete, and every file that a run needs is present and opens."""
    try:
        check_files(checkpoint)
    except DamagedError:
        return False
    return True


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or `None`. Warns about newer incomplete ones."""
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if path.is_dir() and number.isdecimal():
            found.append((int(number), path))
    for _, path in sorted(found, reverse=True):
        try:
            check_files(path)
        except DamagedError as problem:
            logger.warning("%s %s: skipping it and trying an earlier one.", path, problem)
        else:
            return path
    return None


def asks_for_last(asked: str | bool | None) -> bool:
    """True if `resume_from_checkpoint` asks for the last complete checkpoint and not for one by its path."""
    return str(asked).lower() in ("true", "auto")


def checkpoint_to_resume(asked: str | bool | None, output_dir: str) -> str | None:
    """Resolves `resume_from_checkpoint` to the path of a checkpoint, or `None` to start from the beginning.

    Args:
        asked: A path; `True` or "true" for the last complete checkpoint; "auto" for that one, else the beginning.
        output_dir: Output folder of the run.

    Raises:
        ResumeError: The checkpoint does not exist or is incomplete; the message names the file.
    """
    word = str(asked).lower()
    if asked is None or word in ("false", "none"):
        return None
    if asks_for_last(asked):
        found = last_complete_checkpoint(output_dir)
        if found is None and word == "true":
            raise ResumeError(
                f"`resume_from_checkpoint`: there is no complete checkpoint in {output_dir!r}. Use 'auto' to start "
                "from the beginning if there is none."
            )
        return found and str(found)
    path = Path(str(asked))
    problem = "is not a folder"
    if asked and path.is_dir():
        try:
            check_files(path)
        except DamagedError as error:
            problem = str(error).replace("is incomplete", "is not a complete checkpoint", 1)
        else:
            return str(path)
    raise ResumeError(
        f"`resume_from_checkpoint`: {asked!r} {problem}. Use 'auto' for the last complete one in `output_dir`, or the "
        "beginning if there is none."
    )
