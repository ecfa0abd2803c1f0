"""Reads a row's problem and answer, identically in training and evaluation.

A field is a column or, within mappings, a dotted path (`reward_model.ground_truth`). A problem is text or a conversation;
an answer is text, a number, or a list of those. Nothing is ever turned into its Python repr: a value without a single
reading is an error that says so.
"""

import ast
import datetime
import decimal
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ._util.text import nearest


Message = dict[str, Any]
AnswerMatch = Literal["any", "all"]
ANSWER_MATCHES = ("any", "all")

# Roles as ShareGPT and similar formats write them
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
# A list of quoted texts, as JSON or Python writes it. `[2, 3]` is an interval and stays text
_QUOTED_LIST = re.compile(rf"\[\s*{_QUOTED}(?:\s*,\s*{_QUOTED})*\s*\]", re.DOTALL)
_MESSAGES_AS_TEXT = re.compile(r"\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")
# LaTeX with single backslashes, where `\frac` would be read as a form feed and `\nu` as a new line
_SINGLE_BACKSLASH = re.compile(
    r"(?<!\\)\\(?=[abfrv][a-zA-Z]|n(?:u|eq?|abla|ot|otin|mid)(?![a-zA-Z])|t(?:ext\w*|anh?|heta|imes|frac|o|au)(?![a-zA-Z]))"
)
# GSM8K's solutions end with their answer in a line of its own
_FINAL_LINE = re.compile(r"(?:\A|.*\n)####[ \t]+(\S[^\n]*)\s*\Z", re.DOTALL)
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
# To detect a float that was a whole number in JSON, with more digits than a float can hold
_EXACT_DIGITS, _EXACT = 15, 2**53


class Missing(ValueError):  # noqa: N818
    """A field of a row is empty: null, white space, an empty list, or a conversation without a user message."""


# Fields


def paths_of(value: Any, prefix: str = "") -> list[str]:
    """The dotted paths within a mapping, which may be JSON text."""
    value = _as_mapping(value)
    if value is None:
        return [prefix]
    start = f"{prefix}." if prefix else ""
    return [path for key, inner in value.items() for path in paths_of(inner, f"{start}{key}")]


def _as_mapping(value: Any) -> Mapping | None:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, Mapping) else None


def read_field(row: Mapping[str, Any], path: str) -> Any:
    """A row's value at a dotted path. A name that itself contains the dots wins. Everything below a null is null.

    Raises:
        KeyError: There is no such field.
    """
    if path in row:
        return row[path]
    head, dot, rest = path.rpartition(".")
    while dot:
        if head in row:
            inner = row[head]
            if inner is None:
                return None
            mapping = _as_mapping(inner)
            if mapping is None:
                raise KeyError(path)
            return read_field(mapping, rest)
        head, dot, last = head.rpartition(".")
        rest = f"{last}.{rest}"
    raise KeyError(path)


def column_of(path: str, names: Sequence[str]) -> str | None:
    """The column that a path begins with, or `None`."""
    while path not in names:
        path, dot, _ = path.rpartition(".")
        if not dot:
            return None
    return path


def check_field(setting: str, path: str, names: Sequence[str], example: Mapping[str, Any] | None, of: str) -> None:
    """Raises `ValueError`, which lists the existing names, unless a row has the field.

    Args:
        setting: The setting that names it.
        path: The column or dotted path.
        names: The columns.
        example: A row, if there is one.
        of: Whose field it is, for the message ("the dataset").
    """
    column = column_of(path, names)
    if column is None:
        raise ValueError(f"`{setting}`: {of} has no column {path!r}. {nearest(path, names)}")
    if column == path or example is None:
        return
    try:
        read_field(example, path)
    except KeyError:
        inner = paths_of(example[column], column)
        raise ValueError(f"`{setting}`: {of} has no field {path!r}. {nearest(path, inner)}") from None


# Problems


def read_problem(value: Any, name: str = "COLUMN") -> str | list[Message]:
    """Reads a problem: its text, or a conversation as messages with `role` and `content`.

    A conversation is a list of messages (`role` and `content`, or ShareGPT's `from` and `value`), one message, such a
    list as JSON text, or the mapping of lists that `datasets` builds from a sequence of messages. Text parts of a
    `content` are joined; content with other parts stays as it is.

    Args:
        value: The field's value.
        name: The field's name, for messages.

    Raises:
        Missing: The field has no problem.
        ValueError: It is neither text nor a conversation; the message says what it is and what to do.
    """
    if isinstance(value, bytes):
        value = _decoded(value)
    if isinstance(value, str):
        if not value.strip():
            raise Missing("it is empty")
        if not _MESSAGES_AS_TEXT.match(value.lstrip()):
            return value
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(
                f"holds a list of messages in Python syntax, {_shown(value)}: write it as JSON, or as a list in JSONL "
                "or parquet"
            ) from None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Missing("it is null")
    if isinstance(value, Mapping):
        value = _rows_of(value, name)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"holds {_kind(value)} ({_shown(value)}), not text or messages: name the problem's column")
    if not value:
        raise Missing("it is an empty list")
    if not all(isinstance(message, Mapping) for message in value):
        raise ValueError(
            f"holds a list, but not of messages ({_shown(value)}): a problem is text, or messages with `role` and "
            "`content`"
        )
    messages = [_message(message) for message in value]
    if not any(message["role"] == "user" and _filled(message["content"]) for message in messages):
        raise Missing("it has no user message")
    return messages


def _rows_of(value: Mapping, name: str) -> list:
    """The messages in a mapping: one message, or lists of equal length."""
    for keys in (("role", "content"), ("from", "value")):
        if set(keys) <= value.keys():
            if (
                all(isinstance(value[key], (list, tuple)) for key in keys)
                and value["role" if "role" in keys else "from"]
            ):
                columns = [key for key in value if isinstance(value[key], (list, tuple))]
                return [
                    dict(zip(columns, row, strict=False)) for row in zip(*(value[c] for c in columns), strict=False)
                ]
            return [value]
    raise ValueError(f"is a mapping: name a field of it, such as {_some(paths_of(value, name))}")


def _message(message: Mapping[str, Any]) -> Message:
    if "role" in message and message["role"] is not None:
        role, content = message["role"], message.get("content")
        rest = {k: v for k, v in message.items() if k not in ("role", "content") and v is not None}
    elif message.get("from") is not None:
        role, content, rest = message["from"], message.get("value"), {}
        if _role(role) not in _KNOWN_ROLES:
            known = ", ".join(dict.fromkeys((*_ROLES, *_KNOWN_ROLES)))
            raise ValueError(f"has a message from {role!r}, which is not a known role ({known})")
    else:
        raise ValueError(f"has a message without `role`: {_shown(message)}")
    role = _role(role)
    if isinstance(content, (list, tuple)) and content and all(_is_text(part) for part in content):
        content = "".join(part if isinstance(part, str) else part["text"] for part in content)
    if role == "user" and content is not None and not isinstance(content, (str, list, tuple)):
        raise ValueError(f"has a message whose content is {_kind(content)}: {_shown(content)}")
    return {"role": role, "content": content, **rest}


def _role(role: Any) -> Any:
    """A role as chat templates name it, in any case; others as they are."""
    folded = str(role).strip().lower()
    return _ROLES.get(folded, folded if folded in _KNOWN_ROLES else role)


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (
        isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)
    )


def _filled(content: Any) -> bool:
    return bool(content.strip()) if isinstance(content, str) else bool(content)


def without_answer(messages: Sequence[Message]) -> list[Message]:
    """Drops the assistant's turns at a conversation's end, which hold the answer."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return list(messages[:end])


def states_answer(messages: Sequence[Message], answers: Sequence[str]) -> bool:
    """True if an assistant turn equals, boxes or ends with an answer."""
    turns = [m["content"].strip() for m in messages if m["role"] == "assistant" and isinstance(m["content"], str)]
    return any(
        f"\\boxed{{{answer}}}" in turn or re.search(rf"(?<![\w.]){re.escape(answer)}[.\s$)}}*\]]*\Z", turn)
        for turn in turns
        for answer in answers
    )


def in_parts(messages: Sequence[Message]) -> list[Message]:
    """The messages with every text as a list of one part, beside which other messages can have images."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in messages
    ]


def has_parts(problem: str | Sequence[Message]) -> bool:
    """Whether a message holds more than a text."""
    return not isinstance(problem, str) and any(isinstance(m["content"], (list, tuple)) for m in problem)


def has_system_message(problem: str | Sequence[Message]) -> bool:
    return not isinstance(problem, str) and any(m["role"] in ("system", "developer") for m in problem)


def make_prompt(
    problem: str | Sequence[Message], *, template: str | None, system: str | None, plain: bool
) -> str | list[Message]:
    """Builds the prompt of a problem.

    Args:
        problem: Text, or a conversation without the answer.
        template: Text with the slot `{problem}`, around the text or a conversation's last user message.
        system: System message to prepend, unless a conversation has its own.
        plain: Whether to return plain text.

    Raises:
        ValueError: The conversation cannot be plain text, or the template would surround more than text.
    """
    if isinstance(problem, str):
        text = _in_template(template, problem.strip())
        return text if plain else [*_system(system), {"role": "user", "content": text}]
    messages = [dict(message) for message in problem]
    if template is not None and template != "{problem}":
        last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        if not isinstance(messages[last]["content"], str):
            raise ValueError("has messages with more than text, which `prompt_template` cannot wrap: leave it out")
        messages[last]["content"] = _in_template(template, messages[last]["content"].strip())
    if not plain:
        return messages if has_system_message(messages) else [*_system(system), *messages]
    if len(messages) > 1 or not isinstance(messages[0]["content"], str):
        raise ValueError(
            f"has a conversation of {', '.join(message['role'] for message in messages)}, of which `plain_prompts` cannot "
            "make one text: leave `plain_prompts` out, or name a column with text"
        )
    return messages[0]["content"]


def _system(text: str | None) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def _in_template(template: str | None, text: str) -> str:
    return text if template is None else template.replace("{problem}", text)


def text_of(problem: str | Sequence[Message]) -> str:
    """A problem as shown to a reader: for a conversation, the last user message."""
    if isinstance(problem, str):
        return problem.strip()
    content = next(m["content"] for m in reversed(problem) if m["role"] == "user")
    return content.strip() if isinstance(content, str) else _shown(content)


# Answers


def read_answers(value: Any, name: str = "COLUMN") -> list[str]:
    """Reads a field's answers, without duplicates.

    A number is written out (27.0 is 27, 1e-07 is 0.0000001), nulls in a list are skipped, and a list of quoted texts
    may itself be text (`["70"]`). Of a solution whose last line is `#### 72`, as in GSM8K, the answer is 72.

    Args:
        value: The field's value.
        name: The field's name, for messages.

    Raises:
        Missing: The field has no answer.
        ValueError: It is a mapping or a nested list; the message says what it is and what to do.
    """
    if isinstance(value, bytes):
        value = _decoded(value)
    if isinstance(value, str) and _QUOTED_LIST.fullmatch(value.strip()):
        value = _quoted(value.strip())
    if isinstance(value, Mapping):
        raise ValueError(f"is a mapping: name a field of it, such as {_some(paths_of(value, name))}")
    if not isinstance(value, (list, tuple)):
        text = _answer_text(value)
        if not text:
            raise Missing("it is null" if value is None else f"it is {value!r}")
        return [text]
    if any(isinstance(item, (list, tuple, Mapping)) for item in value):
        raise ValueError(f"holds lists of more than texts and numbers ({_shown(value)}): name a field with the answer")
    found = list(dict.fromkeys(text for item in value if (text := _answer_text(item))))
    if not found:
        raise Missing("it is an empty list")
    return found


def _quoted(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(_SINGLE_BACKSLASH.sub(r"\\\\", text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _answer_text(value: Any) -> str:
    """The answer as text, empty if there is none."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        number = decimal.Decimal(repr(value))
        if value.is_integer():
            if abs(value) >= _EXACT and len(number.as_tuple().digits) > _EXACT_DIGITS:
                raise ValueError(
                    f"holds a whole number that was rounded when the file was read (to {value!r}): write such numbers as "
                    'text, in quotes ("...")'
                )
            return format(number.to_integral_value(), "f")
        return format(number, "f")
    if isinstance(value, datetime.datetime):  # `datasets` reads "2024-05-01" as one
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(sep=" ")
    if isinstance(value, bytes):
        value = _decoded(value)
    text = "" if value is None else str(value).strip()
    final = _FINAL_LINE.fullmatch(text)
    return final[1].strip() if final else text


def gold_of(answers: Sequence[str], match: AnswerMatch | None) -> str | list[str]:
    """The gold answer of a completion: one solution, or with `any` the list of several.

    With `all`, several answers become one text, a list that a completion must give in any order.

    Raises:
        ValueError: There are several answers and no `match`.
    """
    if len(answers) == 1:
        return answers[0]
    if match is None:
        raise ValueError(
            f"has {len(answers)} answers ({_some(answers)}): set `answer_match` to `any` (one of them is right) or `all` "
            "(the list of them is)"
        )
    if match == "any":
        return list(answers)
    bare = list(dict.fromkeys(map(_in_list, answers)))
    if len(bare) == 1:
        return bare[0]
    joined = ", ".join(bare)
    if all(_WORDS.fullmatch(a) for a in bare):
        return rf"\{{{joined}\}}"
    # math-verify reads a list if it is in dollars
    return joined if "$" in joined.replace(r"\$", "") else f"${joined}$"


def _in_list(answer: str) -> str:
    """Normalises an answer for a list: strips surrounding dollars and commas in numbers, and writes 3.0 as 3."""
    if len(answer) > 2 and answer[0] == answer[-1] == "$" and answer.count("$") == 2:
        answer = answer[1:-1].strip()
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    if answer.startswith("$") and answer.count("$") == 1:
        answer = "\\" + answer
    return re.sub(r"\A([-+]?\d+)\.0+\Z", r"\1", answer)


def check_match(value: Any) -> None:
    """Raises `ValueError` unless it is unset or a value of `answer_match`."""
    if value is not None and value not in ANSWER_MATCHES:
        raise ValueError(f"`answer_match`: unknown value {value!r}. {nearest(str(value), ANSWER_MATCHES)}")


# Wording of messages


def _decoded(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("holds bytes that are not UTF-8 text") from None


def _kind(value: Any) -> str:
    for kind, name in ((bool, "a boolean"), ((int, float), "a number"), (datetime.datetime, "a date")):
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = [_shown(name) if len(name) > 60 else name for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
