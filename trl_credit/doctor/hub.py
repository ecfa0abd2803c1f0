"""Where the models and data are that a recipe names: here, in the hub's cache, on the hub, or nowhere."""

import contextlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


HERE, CACHED, REMOTE, MISSING, PARTIAL = "here", "in the cache", "not here yet", "missing", "in the cache in part"
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*/*.safetensors")
_SECONDS = 10
_PORTS = {"https": 443}


@dataclass(frozen=True)
class Place:
    """Where something is.

    Args:
        field: The setting that names it.
        name: Its name.
        state: One of the states above.
        kind: `model` or `dataset`.
        told: What the hub says, if it was asked; empty if it gives it.
    """

    field: str
    name: str
    state: str
    kind: str
    told: str = ""

    @property
    def on_hub(self) -> bool:
        """True if it must come from the hub."""
        return self.state in (REMOTE, PARTIAL)


def find(field: str, name: str, kind: str, ask: bool = False) -> Place:
    """Finds a model or data.

    Args:
        field: The setting that names it.
        name: A path or hub id.
        kind: `model` or `dataset`.
        ask: Whether to ask the hub for what is not here.
    """
    if name.startswith("trl_credit:"):
        return Place(field, name, HERE, kind)
    path = Path(os.path.expanduser(name))
    if path.exists():
        return Place(field, name, HERE, kind)
    is_file = kind == "dataset" and path.suffix in (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".gz")
    if is_file or not _is_hub_id(name):
        return Place(field, name, MISSING, kind)
    state = _cached_model(name) if kind == "model" else _cached_data(name)
    return Place(field, name, state, kind, _told(name, kind) if ask and state != CACHED else "")


def _is_hub_id(name: str) -> bool:
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError:  # it is broken, which `hub_state` tells
        return name.count("/") < 2
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def answers(address: str) -> bool:
    """True if something listens at an address."""
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        with socket.create_connection(
            (parts.hostname or "localhost", parts.port or _PORTS.get(parts.scheme, 80)), timeout=2
        ):
            return True
    except (OSError, ValueError):
        return False


def reachable() -> str:
    """Asks the hub whether it is there; empty if it is, else why not."""
    try:
        from huggingface_hub import constants, get_session

        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _told(name: str, kind: str) -> str:
    """What the hub says of a repository that it does not give; empty if it gives it."""
    try:
        from huggingface_hub import HfApi

        HfApi().repo_info(name, repo_type=kind, timeout=_SECONDS)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _cached_model(name: str) -> str:
    try:
        from huggingface_hub import try_to_load_from_cache

        found = [
            try_to_load_from_cache(name, file) for file in ("config.json", "adapter_config.json", "model_index.json")
        ]
    except Exception:  # not a hub id, or no usable cache
        return REMOTE
    config = next((Path(path) for path in found if isinstance(path, str)), None)
    return REMOTE if config is None else CACHED if _has_weights(config.parent) else PARTIAL


def _has_weights(snapshot: Path) -> bool:
    """True if every file of weights is there: those in an index, or any."""
    for index in snapshot.glob("*.index.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return all((snapshot / shard).exists() for shard in shards)
    return any(True for pattern in _WEIGHTS for _ in snapshot.glob(pattern))


def _cached_data(name: str) -> str:
    """Looks for what `datasets` has prepared, and for the hub's files."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return REMOTE
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    places = [
        Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}", "snapshots"),
        prepared / name.replace("/", "___").lower(),
        prepared / name.replace("/", "___"),
    ]
    return CACHED if any(place.is_dir() and any(place.iterdir()) for place in places) else REMOTE
