"""Reads completions to inspect from files of several kinds and from run folders."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._util.files import RunFolderError, read_lines
from ..evaluation.store import is_sample
from ..fields import Missing, read_problem
from ..records.record import SOURCE_PROMPT, TURN_REWARDS, CompletionCredit, read_parquet
from .scoring import Completion


logger = logging.getLogger(__name__)


def read_completions(name: str, limit: int) -> tuple[list[Completion], tuple[list[CompletionCredit], dict] | None]:
    """Reads the completions of a file or folder, and their token credit if it is stored there.

    A folder may be that of an evaluation (`samples.jsonl`) or of a training run. Of a training run, the newest token
    credit (`credit/`, of `credit_log_steps`) is read, or else its newest table (`completions/`, of `log_completions`).

    Args:
        name: File or folder.
        limit: Maximum number of completions to read.

    Raises:
        ValueError: There is no such file, or it has nothing readable.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise ValueError(f"`completions`: there is no file or folder {name!r} (looked from {Path.cwd()}).")
    if path.is_dir():
        path = _in_folder(path)
    if path.name == "samples.jsonl":
        return _samples(path, limit), None
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            names = pq.read_schema(path).names
        except (OSError, ValueError) as error:
            raise ValueError(f"`completions`: cannot read {name!r}: {str(error).splitlines()[0]}") from error
        if "clean" in names and "steps" in names:
            raise ValueError(
                f"`completions`: {name!r} has the credit of images, which is not shown here. Open the page beside it, "
                f"{path.with_suffix('.html').name}."
            )
        if "token_ids" in names and "logps" in names:
            records, about = read_parquet(path)
            records = records[:limit]
            return [_of_record(record) for record in records], (records, about)
        rows = pq.read_table(path).slice(0, limit).to_pylist()
    elif path.suffix in (".jsonl", ".json"):
        rows = _json_rows(path)[:limit]
    else:
        raise ValueError(f"`completions`: {name!r} must be a folder or end in .jsonl, .json or .parquet.")
    if not rows:
        raise ValueError(f"`completions`: {name!r} holds no completions.")
    # Completions of the same prompt form a group
    groups: dict[str, int] = {}
    numbers = [groups.setdefault(repr(row.get("prompt")), len(groups)) for row in rows]
    return [_of_row(row, i, str(path), group) for i, (row, group) in enumerate(zip(rows, numbers, strict=True))], None


def _in_folder(folder: Path) -> Path:
    if (folder / "samples.jsonl").exists():
        return folder / "samples.jsonl"
    for pattern in (
        "credit/step-*.parquet",
        "step-*.parquet",
        "credit.parquet",
        "completions/completions_*.parquet",
        "completions_*.parquet",
    ):
        if found := sorted(folder.glob(pattern)):
            return found[-1]
    raise ValueError(
        f"`completions`: the folder {str(folder)!r} has no samples.jsonl (of `trl-credit eval`), no `credit/` (of "
        "`credit_log_steps`) and no `completions/` (of `log_completions`)."
    )


def _json_rows(path: Path) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`completions`: {str(path)!r} is not UTF-8 ({error.reason} at byte {error.start})."
        ) from error
    # In JSONL every line is a value. Splits only at \n, because values may contain U+2028 and the like
    lines = [(1, text)] if path.suffix == ".json" else [(i, t) for i, t in enumerate(text.split("\n"), 1) if t.strip()]
    values = []
    for number, line in lines:
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"`completions`: {str(path)!r}, line {number + error.lineno - 1}, is not JSON: {error.msg} at character "
                f"{error.colno}."
            ) from error
        except (ValueError, RecursionError) as error:  # numbers with thousands of digits, or equally deep nesting
            raise ValueError(
                f"`completions`: {str(path)!r}, line {number}, cannot be read as JSON: {error}."
            ) from error
    rows = values[0] if path.suffix == ".json" else values
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"`completions`: {str(path)!r} must hold a list of objects.")
    return rows


def _samples(path: Path, limit: int) -> list[Completion]:
    """Reads an evaluation's samples. Prompts are in its problems.jsonl, and the judge's verdict is the reward."""
    try:
        problems = {
            (row["task"], row["problem"]): row
            for row in read_lines(path.parent / "problems.jsonl")
            if {"task", "problem", "prompt"} <= row.keys()
        }
        rows = read_lines(path)
        # Lengths in tokens are not needed, so they may be missing
        samples = [row for row in rows if is_sample({"tokens": None} | row)]
    except (RunFolderError, OSError) as error:
        raise ValueError(f"`completions`: {error}") from error
    if not samples:
        raise ValueError(f"`completions`: {str(path)!r} holds no samples{' that are whole' if rows else ''}.")
    if len(samples) < len(rows):
        logger.warning("%s: %d damaged sample(s) are left out.", path, len(rows) - len(samples))
    groups = {key: i for i, key in enumerate(problems)}
    found = [row for row in samples if (row["task"], row["problem"]) in problems]
    if not found:
        raise ValueError(f"`completions`: {str(path.parent / 'problems.jsonl')!r} has none of the samples' problems.")
    return [
        Completion(
            prompt=problems[row["task"], row["problem"]]["prompt"],
            text=row["text"],
            finished=row["finish"] != "length",
            reward=None if row.get("correct") is None else float(row["correct"]),
            group=groups[row["task"], row["problem"]],
            info={name: row[name] for name in ("task", "problem", "index", "answer") if name in row},
        )
        for row in found[:limit]
    ]


def _text_of(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if (
        isinstance(value, list)
        and value
        and isinstance(value[-1], Mapping)
        and isinstance(value[-1].get("content"), str)
    ):
        if len(value) == 1:
            return value[0]["content"]
        raise ValueError(
            f"{where}: `completion` has {len(value)} messages; conversations with tools need their `token_ids`."
        )
    raise ValueError(f"{where}: `completion` is neither text nor a message: {value!r}.")


def _rewards(row: Mapping[str, Any]) -> dict[str, float]:
    """Rewards by function, from a row of TRL's table. Their columns are between the completion and the advantage, next
    to columns that the functions logged."""
    names = list(row)
    if not {"step", "completion", "advantage"} <= set(names):
        return {}
    between = names[names.index("completion") + 1 : names.index("advantage")]
    return {
        name: float(row[name])
        for name in between
        if isinstance(row[name], (int, float)) and not isinstance(row[name], bool) and not name.startswith("credit/")
    }


def _of_row(row: Mapping[str, Any], number: int, path: str, group: int) -> Completion:
    where = f"`completions`: row {number + 1} of {path!r}"
    if row.get("prompt") is None:
        raise ValueError(f"{where} has no `prompt`, but {', '.join(row)}: rename the column.")
    ids = row["token_ids"] if row.get("token_ids") is not None else row.get("completion_ids")
    if ids is None and row.get("completion") is None:
        raise ValueError(f"{where} has neither `completion` nor `token_ids`; it has {', '.join(row)}.")
    try:
        prompt = read_problem(row["prompt"], "prompt")
    except Missing as missing:
        if not isinstance(row["prompt"], list) or not row["prompt"]:
            raise ValueError(f"{where} has no `prompt`: {missing}.") from None
        prompt = row["prompt"]  # an environment's message may come first
    except ValueError as error:
        raise ValueError(f"{where}: `prompt` {error}.") from None
    if ids is not None:
        ids = _whole_numbers(ids, "token_ids", where)
    mask = row.get("mask")
    if mask is not None and (not isinstance(mask, list) or any(value not in (0, 1) for value in mask)):
        raise ValueError(f"{where}: `mask` must be a list of 0 and 1 (or booleans), got {_short(mask)}.")
    finished = row.get("finished", True)
    if finished is not None and finished not in (True, False):
        raise ValueError(f"{where}: `finished` must be a boolean, got {finished!r}.")
    rewards = _rewards(row)
    reward, turn_rewards = row.get("reward"), None
    if isinstance(reward, list):
        turn_rewards = [_number(value, f"reward[{k}]", where) for k, value in enumerate(reward)]
        reward = None
    elif reward is None and len(rewards) == 1:
        reward = next(iter(rewards.values()))
    return Completion(
        prompt=prompt,
        token_ids=ids,
        text=None if ids is not None else _text_of(row["completion"], where),
        finished=finished is not False,
        mask=mask,
        advantage=_number(row.get("advantage"), "advantage", where),
        reward=_number(reward, "reward", where),
        turn_rewards=turn_rewards,
        group=_group(row.get("group", group), where),
        example=dict(row),
        info={name: row[name] for name in ("step",) if name in row} | ({"rewards": rewards} if rewards else {}),
    )


def _whole_numbers(values: Any, name: str, where: str) -> list[int]:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{where}: `{name}` must be a list of token ids, got {_short(values)}.")
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{where}: `{name}` must be whole numbers from 0; number {place + 1} is {_short(value)}.")
    return list(values)


def _number(value: Any, name: str, where: str) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # tables store a missing value as NaN
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where}: `{name}` must be a finite number, got {_short(value)}.")
    return float(value)


def _group(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: `group` must be a whole number, got {_short(value)}.")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _of_record(record: CompletionCredit) -> Completion:
    """Converts a record to a completion, for scoring it again."""
    return Completion(
        prompt=record.info.get(SOURCE_PROMPT, record.prompt),
        token_ids=record.token_ids.tolist(),
        mask=record.mask.tolist(),
        advantage=record.advantage,
        reward=record.reward,
        turn_rewards=record.info.get(TURN_REWARDS),
        group=record.group,
        info=record.info,
    )
