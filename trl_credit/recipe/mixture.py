"""TRL's mixtures of datasets."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from .._util.text import nearest
from ..data import cached_apart


# What entries of other projects' mixtures are here
_HINTS = {
    "id": "Write `path`.",
    "config": "Write `name`.",
    "weight": "A share of the dataset's rows is a slice of its split, such as `split: train[:50%]`; a share of the mixture "
    "is `fraction`.",
}


def load_mixture(dataset_args: DatasetMixtureConfig, seed: int) -> dict[str, Any]:
    """TRL's mixture of `datasets`, split with the run's seed: TRL's own split differs between processes and runs."""
    texts = [entry for entry in dataset_args.datasets if isinstance(entry, str)]
    texts += [entry.path for entry in dataset_args.datasets if getattr(entry, "path", "").startswith(("{", "["))]
    if texts:
        raise ValueError(
            "`datasets` is a list of mappings with a `path` in a recipe (datasets: [{path: OWNER/NAME, split: train}]), got "
            f"{', '.join(texts)}. For a single dataset, or on the command line, set `dataset_name`."
        )
    size = dataset_args.test_split_size
    if size and dataset_args.streaming:
        raise ValueError(
            f"`test_split_size` ({size}) cannot split a stream. Set `eval_dataset_name`, or `streaming: false`."
        )
    shares = [entry.fraction for entry in dataset_args.datasets if entry.fraction is not None]
    if shares and (min(shares) < 0 or not sum(shares) > 0):
        raise ValueError(f"`datasets`: `fraction` must be at least 0, and above 0 somewhere, got {shares}.")
    try:
        splits = get_dataset(replace(dataset_args, test_split_size=None))
    except (DatasetsError, OSError, EOFError, ValueError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        if "can't be aligned" in cause or "cannot be aligned" in cause:
            cause = f"columns of one name differ in type between datasets; `columns` chooses which are read. {cause}"
        raise ValueError(f"`datasets`: cannot be read: {cause[:500]}") from error
    if not size:
        return splits
    rows = splits["train"]
    with cached_apart(rows):
        return rows.train_test_split(test_size=size, seed=seed)


def check_mixture(entries: Any) -> None:
    """Raises `ValueError` for an entry of `datasets`, as written, that TRL has no place for."""
    known = [f.name for f in fields(DatasetConfig)]
    for entry in entries if isinstance(entries, list) else [entries]:
        if entry is None or isinstance(entry, str):
            continue
        for name in entry if isinstance(entry, Mapping) else ():
            if name not in known:
                raise ValueError(
                    f"`datasets`: an entry has no field {name!r}. {_HINTS.get(name) or nearest(str(name), known)}"
                )
        if isinstance(entry, Mapping) and Path(str(entry.get("path", ""))).is_file():
            suffix = Path(entry["path"].removesuffix(".gz")).suffix
            kind = {".jsonl": "json", ".tsv": "csv", ".txt": "text"}.get(suffix, suffix[1:])
            raise ValueError(
                f"`datasets`: {entry['path']!r} is a file: write {{path: {kind}, data_files: {entry['path']}}}."
            )
        if not isinstance(entry, Mapping) or "path" not in entry:
            raise ValueError(
                "`datasets` is a list of mappings with a `path`, such as [{path: OWNER/NAME, split: train}], got "
                f"{entry!r}."
            )
