"""One completion and its tokens: the record used by pages, tables and CreditBench."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.page import clean


if TYPE_CHECKING:
    import pyarrow as pa


# Schema metadata key of a parquet file, for what describes the file rather than a row
FILE_KEY = b"trl_credit"
# Key in a record's `info`: the prompt before the chat template, for scoring it again
SOURCE_PROMPT = "source_prompt"
# Key in a record's `info`: the rewards of its turns
TURN_REWARDS = "turn_rewards"


@dataclass(frozen=True)
class CompletionCredit:
    """One completion with its token credit under one or more methods. All arrays have one entry for each of T tokens.

    Args:
        prompt: The prompt as the model read it, including special tokens.
        completion: The completion's text.
        tokens: T pieces of text for display. A token with only part of a character shows its bytes, such as `<0xE4>`;
            the token that completes it shows the character.
        token_ids: (T,) int64.
        mask: (T,) bool, tokens that enter the loss.
        logps: (T,) float32 log-probs of the tokens under the policy, in nats.
        entropy: (T,) float32 entropy of the policy's next-token distribution, in nats.
        signals: By title (such as `negative-prompt log-prob`), the (T,) float32 signals that the methods requested.
        weights: By method label, (T,) float32 weights, >= 0 with mean 1 over the mask. Omits methods without weights.
        token_advantages: By method label, (T,) float32 advantages that enter the loss.
        advantage: The sequence advantage A_i. `None` if unknown.
        reward: The completion's reward. `None` if unknown.
        group: Number shared by the completions of one prompt.
        info: Other JSON values by name (step, answer, rewards by name, ...).
    """

    prompt: str
    completion: str
    tokens: list[str]
    token_ids: np.ndarray
    mask: np.ndarray
    logps: np.ndarray
    entropy: np.ndarray
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    token_advantages: Mapping[str, np.ndarray] = field(default_factory=dict)
    advantage: float | None = None
    reward: float | None = None
    group: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        length = len(self.tokens)
        arrays = {
            "token_ids": self.token_ids,
            "mask": self.mask,
            "logps": self.logps,
            "entropy": self.entropy,
            **{f"signals[{name!r}]": value for name, value in self.signals.items()},
            **{f"weights[{name!r}]": value for name, value in self.weights.items()},
            **{f"token_advantages[{name!r}]": value for name, value in self.token_advantages.items()},
        }
        for name, array in arrays.items():
            if np.shape(array) != (length,):
                raise ValueError(f"{name} has shape {np.shape(array)}, but there are {length} tokens.")


# Files


_COLUMNS = ("weights", "token_advantages", "signals")
_PREFIX = {"weights": "weight", "token_advantages": "token_advantage", "signals": "signal"}


def to_table(records: Iterable[CompletionCredit], about: Mapping[str, Any] | None = None) -> pa.Table:
    """Converts records to an Arrow table. Each completion is a row; token values are lists with one entry per token.

    Columns: `prompt`, `completion`, `group`, `reward`, `advantage`, `tokens`, `token_ids`, `mask`, `logps`, `entropy`,
    `signal/TITLE`, `weight/METHOD`, `token_advantage/METHOD`, `info` (JSON).

    Args:
        records: The completions.
        about: JSON values that describe the file (model, methods, ...), stored in the schema's metadata.
    """
    import pyarrow as pa

    records = list(records)
    # A column exists if any record has it. Other records have null there
    names = {kind: list(dict.fromkeys(name for r in records for name in getattr(r, kind))) for kind in _COLUMNS}
    columns: dict[str, pa.Array] = {
        "prompt": pa.array([_encodable(r.prompt) for r in records], pa.string()),
        "completion": pa.array([_encodable(r.completion) for r in records], pa.string()),
        "group": pa.array([r.group for r in records], pa.int64()),
        "reward": pa.array([r.reward for r in records], pa.float64()),
        "advantage": pa.array([r.advantage for r in records], pa.float64()),
        "tokens": pa.array([[_encodable(t) for t in r.tokens] for r in records], pa.list_(pa.string())),
        "token_ids": pa.array([list(map(int, r.token_ids)) for r in records], pa.list_(pa.int64())),
        "mask": pa.array([list(map(bool, r.mask)) for r in records], pa.list_(pa.bool_())),
    }
    floats = pa.list_(pa.float32())
    for name in ("logps", "entropy"):
        columns[name] = pa.array([np.asarray(getattr(r, name), np.float32) for r in records], floats)
    for kind in _COLUMNS:
        for name in names[kind]:
            values = [getattr(r, kind).get(name) for r in records]
            columns[f"{_PREFIX[kind]}/{name}"] = pa.array(
                [None if value is None else np.asarray(value, np.float32) for value in values], floats
            )
    columns["info"] = pa.array([json.dumps(clean(dict(r.info)), default=str) for r in records], pa.string())
    table = pa.table(columns)
    return table.replace_schema_metadata({FILE_KEY: json.dumps(clean(dict(about or {})), default=str)})


def from_table(table: pa.Table) -> tuple[list[CompletionCredit], dict[str, Any]]:
    """Returns the records of a table from [`to_table`], and its description of the file.

    Raises:
        ValueError: A column is missing.
    """
    needed = ("prompt", "completion", "tokens", "token_ids", "mask", "logps", "entropy")
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise ValueError(f"This is no table of token credit: it has no column {missing[0]!r}.")
    about = json.loads((table.schema.metadata or {}).get(FILE_KEY, b"{}"))
    records = []
    for row in table.to_pylist():
        kinds = {
            kind: {
                name.removeprefix(f"{_PREFIX[kind]}/"): _floats(value)
                for name, value in row.items()
                if name.startswith(f"{_PREFIX[kind]}/") and value is not None
            }
            for kind in _COLUMNS
        }
        records.append(
            CompletionCredit(
                prompt=row["prompt"],
                completion=row["completion"],
                tokens=row["tokens"],
                token_ids=np.array(row["token_ids"], np.int64),
                mask=np.array(row["mask"], bool),
                logps=_floats(row["logps"]),
                entropy=_floats(row["entropy"]),
                advantage=row.get("advantage"),
                reward=row.get("reward"),
                group=row.get("group") or 0,
                info=json.loads(row.get("info") or "{}"),
                **kinds,
            )
        )
    return records, about


def write_parquet(path: Path, records: Iterable[CompletionCredit], about: Mapping[str, Any] | None = None) -> None:
    import pyarrow.parquet as pq

    pq.write_table(to_table(records, about), path)


def read_parquet(path: Path) -> tuple[list[CompletionCredit], dict[str, Any]]:
    """Raises `ValueError` if the file is not parquet or not token credit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"Cannot read {str(path)!r}: {str(error).splitlines()[0]}") from error
    return from_table(table)


def to_json(record: CompletionCredit) -> dict[str, Any]:
    """Converts a record to JSON values. NaN and infinities become `None`."""

    def listed(array: np.ndarray) -> list:
        return [float(f"{value:.7g}") if math.isfinite(value) else None for value in array.tolist()]

    return clean(
        {
            "prompt": record.prompt,
            "completion": record.completion,
            "group": record.group,
            "reward": record.reward,
            "advantage": record.advantage,
            "tokens": list(record.tokens),
            "token_ids": [int(i) for i in record.token_ids],
            "mask": [bool(m) for m in record.mask],
            "logps": listed(record.logps),
            "entropy": listed(record.entropy),
            **{kind: {name: listed(value) for name, value in getattr(record, kind).items()} for kind in _COLUMNS},
            "info": dict(record.info),
        }
    )


def _floats(values: list) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], np.float32)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
