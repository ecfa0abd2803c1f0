"""Problems to evaluate on: named benchmarks, your own data, and generated tasks."""

import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._util.text import nearest
from ..data import load_splits
from ..fields import (
    Message,
    Missing,
    check_field,
    gold_of,
    has_system_message,
    make_prompt,
    paths_of,
    read_answers,
    read_field,
    read_problem,
    states_answer,
    text_of,
    without_answer,
)
from ..rewards.patterns import answer_regex
from .config import EvalConfig
from .presets import PRESETS


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskSpec:
    """Where a task's problems come from. Columns and splits that are `None` are detected.

    Args:
        dataset: Source, in any form that `load_splits` accepts.
        config: Configuration of a hub dataset.
        split: Split of the dataset.
        problem_column: Field of the problem, text or a conversation.
        answer_column: Field of the answer.
        answer_marker: The answer is the text after the last occurrence of this marker in the column.
        prompt_template: Replaces the preset's template.
        plain_prompts: Prompts are plain text, not messages.
        answer_pattern: Where a completion states its answer, if not where [`judge`] looks.
    """

    dataset: str
    config: str | None = None
    split: str | None = None
    problem_column: str | None = None
    answer_column: str | None = None
    answer_marker: str | None = None
    prompt_template: str | None = None
    plain_prompts: bool = False
    answer_pattern: str | None = None


TASKS: dict[str, TaskSpec] = {
    "aime24": TaskSpec("HuggingFaceH4/aime_2024", None, "train", "problem", "answer"),
    "aime25": TaskSpec("math-ai/aime25", None, "test", "problem", "answer"),
    "math500": TaskSpec("HuggingFaceH4/MATH-500", None, "test", "problem", "answer"),
    "amc23": TaskSpec("math-ai/amc23", None, "test", "question", "answer"),
    "gsm8k": TaskSpec("openai/gsm8k", "main", "test", "question", "answer", answer_marker="####"),
}
_ARITHMETIC = TaskSpec(
    "trl_credit:arithmetic",
    problem_column="prompt",
    answer_column="answer",
    prompt_template="{problem}",
    plain_prompts=True,
    answer_pattern=r"#(-?\d+)\s*$",
)
_OWN_DATA = ("problem_column", "answer_column", "answer_match", "dataset_config", "dataset_split")
_GENERATED = ("generated_dataset_size", "generated_dataset_config", "generated_dataset_seed")
_PROBLEM_COLUMNS = ("problem", "question", "Problem", "Question")
_ANSWER_COLUMNS = ("answer", "Answer")


@dataclass(frozen=True)
class Problem:
    """One problem of a task: its text, the prompt built from it, and the right answer. If any of several answers is
    right, `answers` lists them and `answer` is only for display."""

    question: str
    prompt: str | tuple[Message, ...]
    answer: str
    answers: tuple[str, ...] = ()

    @property
    def gold(self) -> str | list[str]:
        """Gold answer that samples are judged against."""
        return list(self.answers) or self.answer


@dataclass(frozen=True)
class Task:
    """A task and its problems. `sha256` hashes the questions and answers."""

    name: str
    source: str
    problems: tuple[Problem, ...]
    answer_pattern: str | None = None

    @property
    def sha256(self) -> str:
        rows = [[problem.question, problem.gold] for problem in self.problems]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Everything that determines the task's samples and verdicts."""
        prompts = json.dumps([problem.prompt for problem in self.problems]).encode()
        return {
            "problems": len(self.problems),
            "sha256": self.sha256,
            "prompts_sha256": hashlib.sha256(prompts).hexdigest(),
            "answer_pattern": self.answer_pattern,
        }


def load_tasks(config: EvalConfig) -> list[Task]:
    """Loads the tasks of an evaluation.

    Raises:
        ValueError: A task is unknown, its data cannot be reached or read, a column is missing, or a row has no answer.
    """
    specs = [_resolve(text, config)[1] for text in config.tasks]
    kinds = {"named" if spec in TASKS.values() else spec.dataset.partition(":")[0] for spec in specs}
    generated = kinds & {"reasoning_gym", "trl_credit"}
    for names, used, what in (
        (_OWN_DATA, kinds - {"named", "trl_credit"}, "data of your own: named tasks know their columns"),
        (_GENERATED, generated, "generated tasks"),
    ):
        for name in names:
            if not used and getattr(config, name) != getattr(EvalConfig, name):
                raise ValueError(f"`{name}` has no effect on the tasks {', '.join(config.tasks)}; it is for {what}.")
    tasks = [_load(text, config) for text in config.tasks]
    plain = all(isinstance(problem.prompt, str) for task in tasks for problem in task.problems)
    for name in ("system_prompt", "chat_template_kwargs"):
        if plain and getattr(config, name):
            raise ValueError(f"`{name}` has no effect: the prompts of {', '.join(config.tasks)} are plain text.")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"`tasks`: {name!r} is listed twice. Rename one: NAME=SOURCE.")
    return tasks


def _resolve(text: str, config: EvalConfig) -> tuple[str, TaskSpec]:
    """Returns a task's name and its source."""
    # A path may contain "="
    is_path = Path(text).expanduser().exists()
    name, equals, source = ("", "", "") if is_path else text.partition("=")
    own = {
        "config": config.dataset_config,
        "split": config.dataset_split,
        "problem_column": config.problem_column,
        "answer_column": config.answer_column,
    }
    if equals:
        if not name or not source:
            raise ValueError(f"`tasks`: {text!r} must be NAME=SOURCE, such as aime24=FILE.jsonl.")
        if "/" in name and source not in TASKS and ":" not in source and not Path(source).expanduser().exists():
            raise ValueError(f"`tasks`: there is no file {text!r} (looked from {Path.cwd()}).")
        if source in TASKS:
            return name, TASKS[source]
        spec = _with(source, own)
        return name, replace(spec, answer_marker=TASKS[name].answer_marker) if name in TASKS else spec
    if text in TASKS:
        return text, TASKS[text]
    if ":" not in text and "/" not in text and not Path(text).suffix and not Path(text).exists():
        raise ValueError(
            f"`tasks`: unknown task {text!r}. {nearest(text, TASKS)} A file, a hub id (OWNER/NAME), `reasoning_gym:TASK` "
            "and `trl_credit:arithmetic` work too."
        )
    name = text if ":" in text else Path(text).stem
    return name, _with(text, own)


def _with(source: str, own: Mapping[str, str | None]) -> TaskSpec:
    return _ARITHMETIC if source == _ARITHMETIC.dataset else TaskSpec(source, **own)


def _load(text: str, config: EvalConfig) -> Task:
    name, spec = _resolve(text, config)
    try:
        splits = load_splits(
            spec.dataset,
            setting="tasks",
            config=spec.config,
            generated_size=config.generated_dataset_size,
            generated_config=config.generated_dataset_config,
            seed=config.generated_dataset_seed,
            text_columns=(spec.problem_column, spec.answer_column, *_PROBLEM_COLUMNS, *_ANSWER_COLUMNS),
        )
    except ValueError as error:
        if name in TASKS and spec is TASKS[name]:
            raise ValueError(
                f"{str(error).rstrip('.')}. Without the hub, give a file with the problems: {name}=FILE.jsonl."
            ) from error
        raise
    split = spec.split or ("test" if "test" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if split not in splits:
        asked = f"there is no split {split!r}" if split else "set `dataset_split`"
        raise ValueError(f"`tasks`: {name!r}: {asked}. It has {', '.join(map(repr, splits))}.")
    rows = splits[split]
    first = next(iter(rows), {})
    names = rows.column_names or list(first)
    problem_column = _column(name, "problem_column", spec.problem_column, _PROBLEM_COLUMNS, names, first)
    answer_column = _column(name, "answer_column", spec.answer_column, _ANSWER_COLUMNS, names, first)
    if images := [column for column in ("image", "images") if column in names]:
        raise ValueError(
            f"`tasks`: {name!r} has a column {images[0]!r}, and problems are asked as text only, without images. Remove the "
            "column if they can be answered without."
        )
    problems, seen = [], Counter()
    for number, row in enumerate(itertools.islice(rows, config.limit)):
        setting, column = "problem_column", problem_column
        try:
            read = read_problem(_value(row, column), column)
            question = read if isinstance(read, str) else without_answer(read)
            if not isinstance(read, str):
                if not any(message["role"] == "user" for message in question):
                    raise Missing("no message of it is a user's")
                seen["conversations"] += 1
                seen["answered"] += len(question) < len(read)
                seen["own system"] += has_system_message(question)
            prompt = _prompt(question, spec, config)
            setting, column = "answer_column", answer_column
            value = _value(row, column)
            if spec.answer_marker and isinstance(value, str):
                value = value.rpartition(spec.answer_marker)[2]
            answers = read_answers(value, column)
            gold = gold_of(answers, config.answer_match)
        except Missing:
            what = "problem" if setting == "problem_column" else "answer"
            raise ValueError(
                f"`tasks`: {name!r} has no {what} in row {number}, counted from 0 (column {column!r}): "
                f"{_value(row, column)!r}. Every problem needs one, or its samples would count as wrong."
            ) from None
        except ValueError as error:
            raise ValueError(f"`{setting}`: {name!r}, row {number} of {column!r}, counted from 0, {error}.") from None
        seen["leaks"] += not isinstance(question, str) and states_answer(question, answers)
        several = isinstance(gold, list)
        problems.append(
            Problem(
                text_of(question),
                prompt if isinstance(prompt, str) else tuple(prompt),
                " or ".join(gold) if several else gold,
                tuple(gold) if several else (),
            )
        )
    if not problems:
        raise ValueError(f"`tasks`: {name!r} has no rows.")
    _report(name, problem_column, seen, len(problems), config)
    # Store the regular expression, not its name: a later version may redefine the name
    pattern = config.answer_pattern or spec.answer_pattern
    pattern = None if pattern is None else answer_regex(pattern).pattern
    return Task(name, spec.dataset, tuple(problems), pattern)


def _value(row: Mapping[str, Any], column: str) -> Any:
    try:
        return read_field(row, column)
    except KeyError:  # only other rows' mappings have the field
        return None


def _report(task: str, column: str, seen: Mapping[str, int], count: int, config: EvalConfig) -> None:
    """Logs how conversations were turned into prompts.

    Raises:
        ValueError: Every prompt gives away its answer, or a setting has no effect on any of them.
    """
    if seen["leaks"] == count:
        raise ValueError(
            f"`problem_column`: every conversation of {task!r} in {column!r} states the answer in a turn of the assistant, "
            "before the last message of the user."
        )
    if config.system_prompt and seen["own system"] == count:
        raise ValueError(
            f"`system_prompt` has no effect: every conversation of {task!r} in {column!r} has a system message of its own."
        )
    if seen["answered"]:
        logger.warning(
            "%s: %d of %d conversations end with the assistant's turn, the answer: it is left out of the prompt.",
            task,
            seen["answered"],
            seen["conversations"],
        )
    if seen["leaks"]:
        logger.warning(
            "%s: %d conversations state the answer in a turn of the assistant before the last message of the user.",
            task,
            seen["leaks"],
        )
    if seen["conversations"] and config.prompt_template is None:
        logger.info(
            "%s: conversations are taken as they are, without the preset's prompt; `prompt_template` and `system_prompt` "
            "are put around them where you set them.",
            task,
        )


def _column(
    task: str, setting: str, given: str | None, usual: Sequence[str], names: Sequence[str], first: Mapping[str, Any]
) -> str:
    if given:
        check_field(setting, given, names, first or None, repr(task))
        return given
    found = [name for name in usual if name in names]
    if len(found) == 1:
        return found[0]
    fields = [path for name in names for path in (paths_of(first[name], name) if first else [name])]
    raise ValueError(
        f"`tasks`: set `{setting}` for {task!r}. Its columns: {', '.join(map(repr, fields))}. (A recipe's own is for its "
        "training data; under `eval`, it may have another.)"
    )


def _prompt(question: str | Sequence[Message], spec: TaskSpec, config: EvalConfig) -> str | list[Message]:
    preset = PRESETS[config.preset]
    plain = spec.plain_prompts if config.plain_prompts is None else config.plain_prompts
    if not isinstance(question, str):  # a ready-made conversation already holds what a preset would add
        return make_prompt(question, template=config.prompt_template, system=config.system_prompt, plain=plain)
    template = next(t for t in (config.prompt_template, spec.prompt_template, preset.prompt_template) if t is not None)
    system = preset.system_prompt if config.system_prompt is None else config.system_prompt
    return make_prompt(question, template=template, system=system, plain=plain)
