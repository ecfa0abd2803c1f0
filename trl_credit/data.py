"""Turns a recipe's data source into the columns that TRL and the rewards read."""

import contextlib
import csv
import dataclasses
import functools
import gzip
import hashlib
import inspect
import io
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from pandas._libs.parsers import STR_NA_VALUES

from . import fields
from ._util.text import nearest
from .fields import (
    AnswerMatch,
    Message,
    Missing,
    check_field,
    check_match,
    gold_of,
    has_parts,
    has_system_message,
    in_parts,
    make_prompt,
    read_answers,
    read_field,
    read_problem,
    states_answer,
    without_answer,
)
from .rewards import TRAINER_ARGUMENTS, required_columns
from .rewards.several import as_solution, shown
from .toy import arithmetic


logger = logging.getLogger(__name__)

_FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
# Takes a few seconds: a verifier worker parses about a thousand per second
_MAX_ANSWERS_CHECKED = 2_000


def load_splits(
    name: str,
    *,
    setting: str = "dataset_name",
    config: str | None = None,
    streaming: bool = False,
    generated_size: int = 1000,
    generated_config: dict[str, Any] | None = None,
    seed: int = 42,
    text_columns: Sequence[str | None] = (),
) -> dict[str, Dataset | IterableDataset]:
    """Loads the splits of a dataset; sources without splits give one called `train`.

    Args:
        name: A JSON, JSONL, parquet, CSV or TSV file (in UTF-8, optionally `.gz`), a folder (saved by
            `Dataset.save_to_disk`, or of data files), a hub id, `reasoning_gym:TASK`, or `trl_credit:arithmetic` (the
            quickstart's task) or `trl_credit:digits` (that of the embedded image model).
        setting: The field that error messages name.
        config: Configuration of a hub dataset.
        streaming: Whether to stream it.
        generated_size: Rows of a generated task.
        generated_config: Arguments of a generated task.
        seed: Seed of a generated task.
        text_columns: Columns of a CSV file to keep as text: `007`, `1.50` and `None` are answers, not numbers or nulls.

    Raises:
        ValueError: The file does not exist or cannot be read, or the task or its arguments are wrong.
    """
    kind, _, rest = name.partition(":")
    if kind == "trl_credit":
        make = _embedded_task(name, setting)
        try:
            return {"train": make(generated_size, seed=seed, **(generated_config or {}))}
        except TypeError as error:
            raise ValueError(f"`generated_dataset_config` for {name!r}: {error}") from error
    if kind == "reasoning_gym" and rest:
        return {"train": _reasoning_gym(rest, generated_size, generated_config or {}, seed, setting)}
    path = Path(name).expanduser()
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"`{setting}`: the file {name!r} is empty.")
    if not path.exists() and (suffix in _FILE_FORMATS or name.startswith((".", "/", "~"))):
        raise ValueError(f"`{setting}`: there is no file {name!r} (looked from {Path.cwd()}).")
    if path.is_file() and suffix not in _FILE_FORMATS:
        raise ValueError(f"`{setting}`: {name!r} must end in one of {', '.join(_FILE_FORMATS)} (or that and .gz).")
    try:
        if path.is_file():
            form = _FILE_FORMATS[suffix]
            if form != "parquet":
                _check_text(path, suffix)
            options = _csv_options(path, text_columns) if form == "csv" else {}
            loaded = datasets.load_dataset(form, data_files=str(path), streaming=streaming, **options)
        elif (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(path))
        else:
            options = _folder_options(path, text_columns) if path.is_dir() and config is None else {}
            loaded = datasets.load_dataset(name, name=config, streaming=streaming, **options)
    except (datasets.exceptions.DatasetsError, OSError, EOFError, ValueError, csv.Error) as error:
        cause = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        if "corresponds to no data" in cause:
            cause = "it has no rows."
        if path.is_dir() and cause.startswith("Couldn't cast"):
            cause = f"its files have different columns: name one of them. {cause}"
        raise ValueError(f"`{setting}`: cannot read {name!r}: {cause[:500]}") from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _embedded_task(name: str, setting: str) -> Callable[..., Dataset]:
    """Makes the dataset of an embedded model's task."""
    if name == "trl_credit:arithmetic":
        return arithmetic.make_dataset
    if name != "trl_credit:digits":
        known = ["trl_credit:arithmetic", "trl_credit:digits"]
        raise ValueError(f"`{setting}`: unknown dataset {name!r}. {nearest(name, known)}")
    try:
        from .toy.digits import make_dataset  # imports diffusers
    except ImportError as error:
        raise ValueError(f"`{setting}`: {name!r}: {error}") from error
    return make_dataset


def _open(path: Path):
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _check_text(path: Path, suffix: str) -> None:
    """Raises `ValueError` for a file that is not UTF-8 or has no rows, or a JSONL file with a line that is not JSON.

    JSON readers would read other encodings as UTF-8, and do not name the bad line.
    """
    filled = False
    with _open(path) as file:
        first = file.readline()
        # A list of objects is not JSONL, whatever the file's name, also over several lines
        start = rb"\s*(?:\{|\[\s*[^\s{])"
        lines = suffix == ".jsonl" and re.match(start, first.removeprefix(b"\xef\xbb\xbf")) is not None
        for number, line in enumerate(itertools.chain([first], file), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                encoding = "UTF-16" if first.startswith((b"\xff\xfe", b"\xfe\xff")) else "WINDOWS-1252"
                raise ValueError(
                    f"line {number} is not UTF-8: save the file as UTF-8 (for example: iconv -f {encoding} -t UTF-8)."
                ) from None
            if not text.strip():
                continue
            filled = True
            if lines:
                try:
                    row = json.loads(text)
                except (ValueError, RecursionError) as error:
                    where = f"{error.msg} at character {error.colno}" if hasattr(error, "msg") else error
                    if number == 1 and getattr(error, "lineno", 1) == 1 and text.strip() == "{":
                        lines = False  # one object over several lines
                        continue
                    raise ValueError(f"line {number} is not JSON: {where}.") from None
                if not isinstance(row, dict):
                    raise ValueError(f'line {number} is not an object such as {{"problem": ..., "answer": ...}}.')
    if not filled:
        raise ValueError("it has no rows.")


def _folder_options(path: Path, text_columns: Sequence[str | None]) -> dict[str, Any]:
    """The options of a folder whose data files are all CSV. Hidden files and folders do not count."""
    tables = []
    for file in path.rglob("*"):
        if any(part.startswith(".") for part in file.relative_to(path).parts) or not file.is_file():
            continue
        suffix = Path(file.name.removesuffix(".gz")).suffix
        if suffix in (".csv", ".tsv"):
            tables.append(file)
        elif suffix not in (".md", ""):  # such as images
            return {}
    if not tables:
        return {}
    options = {file: _csv_options(file, text_columns) for file in sorted(tables)}
    first = next(iter(options.values()))
    for file, own in options.items():
        if own["sep"] != first["sep"]:
            raise ValueError(
                f"{file.name!r} separates columns by {own['sep']!r}, {min(tables).name!r} by {first['sep']!r}: write all "
                "files of a folder alike."
            )
    merged = {
        name: {column: value for own in options.values() for column, value in (own[name] or {}).items()}
        for name in ("converters", "na_values")
    }
    return first | merged


def _csv_options(path: Path, text_columns: Sequence[str | None]) -> dict[str, Any]:
    with _open(path) as file:
        header = next((line for line in file if line.strip()), b"").decode("utf-8-sig")
    # Locales with decimal commas separate columns by semicolons
    delimiter = next((mark for mark in ("\t", ";") if mark in header and "," not in header), ",")
    names, row_names = _header(path, delimiter)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {names.count(twice)} columns {twice!r}: rename or remove all but one.")
    kept = {name: str for name in names if name in text_columns}
    # pandas reads `None` and `NA` as nulls even in columns with a converter
    nulls = {name: sorted(STR_NA_VALUES) for name in names if name not in kept}
    options = {"sep": delimiter, "converters": kept, "keep_default_na": False, "na_values": nulls or None}
    return options if row_names else options | {"index_col": False}


def _header(path: Path, delimiter: str) -> tuple[list[str], bool]:
    """The column names, and whether each row has its number in front, without a column name, as R writes it.

    Raises:
        ValueError: Another row has more fields than the header. pandas would shift it.
    """
    csv.field_size_limit(2**31 - 1)
    with _open(path) as file:
        rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), delimiter=delimiter)
        names = next(filter(None, rows), [])
        wide, width, row_names = None, len(names), True
        for number, row in enumerate(filter(None, rows), 1):
            row_names = row_names and len(row) == width + 1 and row[0] == str(number)
            if wide is None and any(row[width:]):
                wide = rows.line_num, len(row)
            if wide and not row_names:
                raise ValueError(
                    f"line {wide[0]} has {wide[1]} fields, but the header {width}: a field with {delimiter!r} in it needs "
                    'quotes ("...", and "" for a quote within).'
                )
    return names, row_names and wide is not None


def _reasoning_gym(name: str, size: int, config: dict[str, Any], seed: int, setting: str) -> Dataset:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(
            f"`{setting}`: {'reasoning_gym:' + name!r} needs its package: pip install 'trl-credit[quickstart]'."
        ) from error
    if name not in DATASETS:
        raise ValueError(f"`{setting}`: reasoning-gym has no task {name!r}. {nearest(name, DATASETS)}")
    try:
        rows = reasoning_gym.create_dataset(name, size=size, seed=seed, **config)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"`generated_dataset_config` for reasoning-gym's {name!r}: {error}") from error
    return Dataset.from_list([{"problem": row["question"], "answer": _text_or_none(row["answer"])} for row in rows])


def _text_or_none(answer: Any) -> str | None:
    return None if answer is None else str(answer)  # some tasks have no single answer


def prepare(
    dataset: Dataset | IterableDataset,
    *,
    problem_column: str | None = None,
    answer_column: str | None = None,
    answer_match: AnswerMatch | None = None,
    system_prompt: str | None = None,
    prompt_template: str | None = None,
    plain_prompts: bool = False,
) -> Dataset | IterableDataset:
    """Adds the columns `prompt` and, with an answer column, `solution`; the dataset's own columns stay.

    A conversation is used as is, without the assistant's turns at its end, which hold the answer. Rows without a
    problem or an answer are dropped and counted. Columns named like an argument that TRL passes to reward functions
    (`completions`) are dropped, with a warning that names them.

    Args:
        dataset: The rows.
        problem_column: Field of the problem, text or a conversation (see [`fields.read_problem`]), from which the
            prompt is built; within mappings a dotted path. By default the column `prompt`.
        answer_column: Field of the answer, likewise (see [`fields.read_answers`]).
        answer_match: If the answer is a list of several, `any` makes `solution` a list of texts, one of which must be
            given; `all` makes it one text, the list that must be given. By default, several answers are an error.
        system_prompt: System message of the prompts; conversations with their own system message keep it.
        prompt_template: Text with the slot `{problem}`, around the text or the last user message.
        plain_prompts: Whether to make plain-text prompts instead of messages (base models, models without a chat
            template).

    Raises:
        ValueError: A field is missing or has no single reading, or a setting would have no effect.
    """
    first = next(iter(dataset), None)
    names = dataset.column_names or list(first or {})
    for setting, path in (("problem_column", problem_column), ("answer_column", answer_column)):
        if path is not None:
            check_field(setting, path, names, first, "the dataset")
    if problem_column is None and "prompt" not in names:
        raise ValueError(
            f"`prompt`: the dataset has no column 'prompt'. {nearest('prompt', names)} Set `problem_column` to the column "
            "that holds the problem's text or messages."
        )
    if problem_column is None:
        for name, value in (("system_prompt", system_prompt), ("prompt_template", prompt_template)):
            if value:
                raise ValueError(
                    f"`{name}` has no effect without `problem_column`: the column `prompt` is used as is. Set "
                    "`problem_column: prompt` to build the prompts from it."
                )
    if prompt_template is not None and "{problem}" not in prompt_template:
        raise ValueError(f"`prompt_template` must contain the slot {{problem}}, got {prompt_template!r}.")
    for slot in re.findall(r"\{(\w+)\}", prompt_template or ""):
        if slot != "problem" and slot in names:
            raise ValueError(
                f"`prompt_template` has the slot {{{slot}}}, but only {{problem}} is filled. Give the data a column that "
                "holds the whole text, and name it as `problem_column`."
            )
    if plain_prompts and system_prompt:
        raise ValueError("`system_prompt` has no effect with `plain_prompts`: put it into `prompt_template`.")
    check_match(answer_match)
    if answer_match is not None and answer_column is None:
        raise ValueError("`answer_match` has no effect without `answer_column`.")
    reader = _Reader(
        problem_column, answer_column, answer_match, system_prompt, prompt_template, plain_prompts, _has_images(names)
    )
    if isinstance(dataset, IterableDataset):
        return _prepare_stream(dataset, reader, first, names)

    result, failure = None, None
    with PartialState().main_process_first(), cached_apart(dataset):  # the other processes read its cache
        try:
            result = _prepare_rows(dataset, reader)
        except Exception as error:  # any error: raised here, it would leave the others waiting
            failure = error
    if failure is not None:
        raise failure
    return _without_reserved(result, result.column_names, reader)


@contextlib.contextmanager
def cached_apart(dataset: Dataset) -> Iterator[None]:
    """Lets `datasets` cache in a temporary folder if it may not write beside the data, which may be somebody else's."""
    folders = {os.path.dirname(file["filename"]) for file in dataset.cache_files}
    apart = datasets.is_caching_enabled() and not all(os.access(folder, os.W_OK) for folder in folders)
    if apart:
        datasets.disable_caching()
    try:
        yield
    finally:
        if apart:
            datasets.enable_caching()


def _prepare_rows(dataset: Dataset, reader: "_Reader") -> Dataset:
    if not len(dataset):
        raise ValueError("The dataset has no rows.")
    checked = dataset.map(reader.check, with_indices=True, remove_columns=dataset.column_names)
    flags = np.array(checked[_FLAGS], int)
    rewrites = reader.problem_column is not None or bool((flags & _REWRITTEN).any())
    reader = dataclasses.replace(reader, rewrites=rewrites, parts=bool((flags & _PARTS).any()))
    _report(dataset, flags, reader)
    kept = dataset.select(np.flatnonzero((flags & _UNUSABLE) == 0)) if (flags & _UNUSABLE).any() else dataset
    return kept.map(reader.columns) if rewrites or reader.answer_column is not None else kept


# Flags that describe a row
_UNUSABLE, _REWRITTEN, _ANSWERED, _LEAKS, _OWN_SYSTEM, _TEXT, _NO_ANSWER, _PARTS = (1 << i for i in range(8))
_FLAGS = "trl_credit_flags"
_CODE = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (__file__, fields.__file__))).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Builds the columns of a row; see [`prepare`]. `rewrites` says if the column `prompt` must be written, and `parts` if
    its texts must be lists of parts, as other rows' messages are. `code` ties
    the cache of `datasets`, whose key is a function's name and values, to this version of the code."""

    problem_column: str | None
    answer_column: str | None
    answer_match: AnswerMatch | None
    system: str | None
    template: str | None
    plain: bool
    images: bool
    rewrites: bool = True
    parts: bool = False
    code: str = _CODE

    def _problem(self, row: Mapping[str, Any]) -> str | list[Message]:
        column = self.problem_column or "prompt"
        return read_problem(read_field(row, column), column)

    def _prompt(self, problem: str | list[Message]) -> str | list[Message]:
        if self.problem_column is None and isinstance(problem, str):
            return problem
        return make_prompt(problem, template=self.template, system=self.system, plain=self.plain)

    def check(self, row: Mapping[str, Any], index: int | None) -> dict[str, int]:
        """Flags that describe a row, for the report. In a stream it has no index.

        Raises:
            ValueError: A field cannot be read; the message names the setting, the column and the row.
        """
        flags, answers = 0, None
        setting, column = "problem_column", self.problem_column or "prompt"
        try:
            problem = None
            try:
                problem = self._problem(row)
            except Missing:
                flags |= _UNUSABLE
            if self.answer_column is not None:
                setting, column = "answer_column", self.answer_column
                try:
                    answers = read_answers(read_field(row, column), column)
                    gold_of(answers, self.answer_match)
                except (Missing, KeyError):  # or a mapping that lacks the field, which other rows have
                    flags |= _UNUSABLE | _NO_ANSWER
                setting, column = "problem_column", self.problem_column or "prompt"
            if problem is None:
                return {_FLAGS: flags}
            if isinstance(problem, str):
                flags |= _TEXT
            else:
                kept = without_answer(problem)
                if not any(message["role"] == "user" for message in kept):
                    return {_FLAGS: flags | _UNUSABLE}
                flags |= _ANSWERED * (len(kept) < len(problem)) | _OWN_SYSTEM * has_system_message(kept)
                flags |= _LEAKS * bool(answers and states_answer(kept, answers))
                problem = kept
            prompt = self._prompt(problem)
            flags |= _PARTS * has_parts(prompt)
            if not self.images or flags & _ANSWERED:
                flags |= _REWRITTEN * (prompt != _pruned(row.get("prompt")))
        except KeyError:
            return {_FLAGS: flags | _UNUSABLE}  # the same of the problem
        except ValueError as error:
            place = f"a row of {column!r}" if index is None else f"row {index} of {column!r}, counted from 0,"
            raise ValueError(f"`{setting}`: {place} {error}.") from None
        return {_FLAGS: flags}

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a usable row."""
        made = {}
        if self.rewrites:
            problem = self._problem(row)
            prompt = self._prompt(problem if isinstance(problem, str) else without_answer(problem))
            made["prompt"] = in_parts(prompt) if self.parts and not isinstance(prompt, str) else prompt
        if self.answer_column is not None:
            gold = gold_of(read_answers(read_field(row, self.answer_column), self.answer_column), self.answer_match)
            # One type for the whole column
            made["solution"] = [gold] if self.answer_match == "any" and isinstance(gold, str) else gold
        return made


def _has_images(names: Sequence[str]) -> bool:
    return "image" in names or "images" in names


def _pruned(prompt: Any) -> Any:
    """Drops the nulls that Arrow adds to messages for keys that only other messages have."""
    if not isinstance(prompt, list):
        return prompt
    return [{k: v for k, v in m.items() if v is not None or k == "content"} for m in prompt if isinstance(m, dict)]


def _report(dataset: Dataset, flags: np.ndarray, reader: _Reader) -> None:
    """Warns about what is left out of the rows.

    Raises:
        ValueError: No row is left, a setting has no effect, prompts are both text and conversations, or every prompt
            would contain the answer.
    """
    count, problem, answer = len(dataset), reader.problem_column or "prompt", reader.answer_column

    def having(flag: int) -> np.ndarray:
        return np.flatnonzero((flags & flag).astype(bool) & ~(flags & _UNUSABLE).astype(bool))

    unusable = np.flatnonzero(flags & _UNUSABLE)
    if len(unusable):
        without = int(((flags & _NO_ANSWER) != 0).sum())
        logger.warning(
            "%d of %d rows have an empty problem or answer and are left out (first: row %d)%s.",
            len(unusable),
            count,
            unusable[0],
            f"; without an answer in {answer!r}: {without}" if without else "",
        )
        if len(unusable) == count:
            empty = f"`{answer}`" if without == count else f"`{problem}`{f' or `{answer}`' * bool(without)}"
            setting = "answer_column" if without == count else "problem_column"
            raise ValueError(f"Every row of the dataset has an empty {empty}: see `{setting}`.")
    conversations = count - len(unusable) - len(having(_TEXT))
    if len(having(_TEXT)) and conversations and reader.problem_column is None:
        raise ValueError(
            f"`prompt` holds both texts (for example row {having(_TEXT)[0]}) and conversations: set "
            "`problem_column: prompt` to turn the texts into conversations."
        )
    if reader.problem_column is None and reader.plain and conversations:
        raise ValueError(
            "`plain_prompts` has no effect without `problem_column`: the column `prompt` holds messages. Set "
            "`problem_column: prompt` to turn them into texts."
        )
    if len(having(_ANSWERED)):
        logger.warning(
            "%d of %d conversations in %r end with the assistant's turn, the answer: that turn is left out of the prompt.",
            len(having(_ANSWERED)),
            conversations,
            problem,
        )
    if len(leaks := having(_LEAKS)):
        if len(leaks) == count - len(unusable):
            raise ValueError(
                f"Every conversation in {problem!r} states the answer in a turn of the assistant, before the user's last "
                "message: the prompts would contain the answer."
            )
        logger.warning(
            "%d conversations in %r state the answer in a turn of the assistant before the user's last message (first: row "
            "%d): their prompts contain the answer.",
            len(leaks),
            problem,
            leaks[0],
        )
    if reader.system and conversations and (own := len(having(_OWN_SYSTEM))):
        if own == count - len(unusable):
            raise ValueError(
                f"`system_prompt` has no effect: every conversation in {problem!r} has a system message of its own."
            )
        logger.warning("%d conversations keep their own system message instead of `system_prompt`.", own)
    for name, source in (("prompt", reader.problem_column), ("solution", answer)):
        if source is not None and source != name and name in dataset.column_names:
            logger.warning("The data's column `%s` is replaced by values built from %r.", name, source)


def _without_reserved(
    dataset: Dataset | IterableDataset, names: Sequence[str], reader: _Reader
) -> Dataset | IterableDataset:
    """Drops the columns named like TRL's own arguments."""
    taken = sorted(TRAINER_ARGUMENTS & set(names))
    if unread := [name for name in taken if name not in (reader.problem_column, reader.answer_column)]:
        logger.warning(
            "Dropped columns (TRL passes arguments with these names to reward functions): %s. Rename any that a reward "
            "function should read.",
            ", ".join(f"`{name}`" for name in unread),
        )
    return dataset.remove_columns(taken) if taken else dataset


def _prepare_stream(
    dataset: IterableDataset, reader: _Reader, first: Mapping[str, Any] | None, names: Sequence[str]
) -> IterableDataset:
    """[`prepare`] for a stream: only its first row is known, and rows that are empty or cannot be read are dropped, with a
    warning for each reason."""
    if first is None:
        raise ValueError("The dataset has no rows.")
    flags = reader.check(first, 0)[_FLAGS]
    if flags & _ANSWERED:
        logger.warning("Conversations end with the assistant's turn, the answer: that turn is left out of the prompt.")
    if flags & _OWN_SYSTEM and reader.system:
        logger.warning("Conversations keep their own system message instead of `system_prompt`.")
    # Other conversations may need it where the first does not
    conversations = not reader.images and not isinstance(first.get("prompt"), str)
    rewrites = conversations or bool(flags & _REWRITTEN) or reader.problem_column is not None
    reader = dataclasses.replace(reader, rewrites=rewrites, parts=bool(flags & _PARTS))
    said: set[str] = set()  # columns that were empty; "" for a row that cannot be read

    def usable(row: Mapping[str, Any]) -> bool:
        try:
            flags = reader.check(row, None)[_FLAGS]
            if not flags & _UNUSABLE:
                if flags & _LEAKS and "leak" not in said:
                    logger.warning(
                        "A conversation of the stream states the answer in a turn of the assistant before the user's last "
                        "message: its prompt contains the answer. So may others."
                    )
                    said.add("leak")
                return True
            column = reader.answer_column if flags & _NO_ANSWER else reader.problem_column or "prompt"
            reason, problem = column, f"its {column!r} is empty."
        except ValueError as error:
            reason, problem = "", str(error)
        if reason not in said:
            logger.warning("A row of the stream is left out, as will be others like it: %s", problem)
            said.add(reason)
        return False

    result = dataset.filter(usable)
    if reader.rewrites or reader.answer_column is not None:
        result = result.map(reader.columns)
    return _without_reserved(result, names, reader)


def check_solutions(dataset: Dataset | IterableDataset, rewards: Sequence[Callable]) -> None:
    """Raises `ValueError` if this package's rewards would read the data's own column `solution` and it is not text."""
    ours = [reward for reward in rewards if inspect.unwrap(_function(reward)).__module__.startswith(f"{__package__}.")]
    if not any("solution" in required_columns(reward) for reward in ours):
        return
    values = [row.get("solution") for row in itertools.islice(dataset, 1)]
    if values and not isinstance(values[0], str):
        raise ValueError(
            f"The column `solution` holds {type(values[0]).__name__} ({str(values[0])[:100]}), not text: set "
            "`answer_column: solution`."
        )


def _function(reward: Callable) -> Callable:
    return reward.func if isinstance(reward, functools.partial) else reward


def report_unparsable(dataset: Dataset | IterableDataset, reward: Callable) -> int:
    """Warns about solutions that a math reward cannot parse, with their count and an example; returns the count.

    The reward gives their completions `None`, so only other rewards, if any, score them.

    Raises:
        ValueError: None of them parses.
    """
    if isinstance(dataset, IterableDataset):
        return 0
    solutions = [as_solution(answer) for answer in dataset["solution"][:_MAX_ANSWERS_CHECKED]]
    rewards = reward([""] * len(solutions), solution=solutions)
    bad = [answer for answer, value in zip(solutions, rewards, strict=True) if value is None]
    if bad:
        logger.warning(
            "%d of the first %d answers do not parse, so `%s` will not score their completions; for example %r.",
            len(bad),
            len(solutions),
            reward.__name__,
            bad[0],
        )
    if odd := [answer for answer in solutions if isinstance(answer, str) and _no_answer(answer)]:
        logger.warning(
            "%d of the first %d answers are none that a completion could state, for example %r: leave such rows out.",
            len(odd),
            len(solutions),
            odd[0][:100],
        )
    if len(bad) == len(solutions):
        raise ValueError(f"None of the first {len(bad)} answers parses; for example {bad[0]!r}. See `answer_column`.")
    return len(bad)


def _no_answer(text: str) -> bool:
    """True for placeholders, such as NuminaMath's, and for the tests of a program."""
    if text.strip().lower() in ("proof", "notfound", "not found", "n/a", "none", "unknown"):
        return True
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except ValueError:
        return False


def report_bare_latex(dataset: Dataset | IterableDataset) -> int:
    """Warns about LaTeX solutions without dollars, which TRL's math rewards misread; returns their count."""
    if isinstance(dataset, IterableDataset):
        return 0
    solutions = [shown(as_solution(answer)) for answer in dataset["solution"][:_MAX_ANSWERS_CHECKED]]
    bare = [
        text for text in solutions if "\\" in text and not any(mark in text for mark in ("$", r"\(", r"\[", r"\boxed"))
    ]
    if bare:
        logger.warning(
            "%d of the first %d answers are LaTeX without dollars, for example %r. `accuracy` misreads many of them (only "
            "the 2 of 2\\sqrt{3}); the reward `judged` does not.",
            len(bare),
            len(solutions),
            bare[0],
        )
    return len(bare)
