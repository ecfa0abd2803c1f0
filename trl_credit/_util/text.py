"""Makes untrusted text safe for terminals, logs and shared files.

Names, labels, paths, completions and server messages may contain anything: Rich markup, escape sequences that rewrite
the screen, marks that reverse the direction of text, lone surrogates that no stream can encode. Commands print such
text through `safe` (one line), `safe_lines` (a message of ours, which may have several) or `safe_text` (a Rich table or
console), and log through the handler of `log_to_terminal`. Pages use `trl_credit.report.page.visible` instead.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, unquote_plus


if TYPE_CHECKING:
    from rich.text import Text


# C0 and C1 controls, line and paragraph separators, invisible characters, marks of text direction, and lone surrogates.
# U+200C and U+200D stay, because Persian and emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_BREAKS = str.maketrans({"\n": "\\n", "\t": "\\t"})
# Shorter query values are too common in messages to be hidden wherever they occur
_LEAST_SECRET = 6
HIDDEN = "***"
# Of TRL, transformers and vLLM; listed by name, because `eos_token` is not a secret
_SECRET_FIELDS = {"hub_token", "push_to_hub_token", "hf_token", "use_auth_token", "api_key"}
# An address, or a task as NAME=ADDRESS, and nothing else: a prompt that contains an address stays as it is
_ADDRESS = re.compile(r"((?:[\w.@-]+=)?)(\w+://\S+)")
# Settings that hold text for a model or a pattern, and may begin with a slash
_TEXTS = re.compile("prompt|template|pattern|stop|columns?$|note|advice")


def safe_lines(text: Any) -> str:
    r"""Escapes control characters as Python does (`\x1b`, `\u202e`); line breaks and tabs stay."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def safe(text: Any) -> str:
    r"""Like `safe_lines`, but on one line: line breaks and tabs become `\n` and `\t`."""
    return safe_lines(text).translate(_BREAKS)


def safe_text(text: Any, style: str = "") -> Text:
    """The text for Rich, which would interpret markup and emoji codes in a string (the latter even with
    `markup=False`). Line breaks stay."""
    from rich.text import Text

    return Text(safe_lines(text), style)


def prepare_terminal() -> None:
    r"""Lets stdout and stderr take any text: characters that their encoding lacks are written as `\u2026` instead of
    ending a command that has done its work. An error handler that the user chose (`PYTHONIOENCODING=ascii:replace`)
    stays."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            with contextlib.suppress(AttributeError, ValueError):  # not a text stream, or closed
                stream.reconfigure(errors="backslashreplace")


class SafeFormatter(logging.Formatter):
    """Formats log lines whose text is not trusted."""

    def format(self, record: logging.LogRecord) -> str:
        return safe_lines(super().format(record))


def log_to_terminal() -> None:
    """Sends warnings to stderr as lines of text, unless logging is already set up."""
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def redact_url(url: str) -> str:
    """The address without possible secrets: user and password, query values and the fragment.

    Every query value is hidden, because keys can have any name (`api_key`, `code`, `sig`). A secret in the path looks
    like any path, and stays.
    """
    # Parsed by hand: an address that urlsplit rejects may hold a secret, too
    address, _, query = url.partition("#")[0].partition("?")
    scheme, slashes, rest = address.rpartition("://")
    if "@" in rest:
        rest = f"{HIDDEN}@{rest.rpartition('@')[2]}"
    parts = [f"{name}={HIDDEN}" if equals else HIDDEN for name, equals, _ in map(_pair, query.split("&")) if name]
    return f"{scheme}{slashes}{rest}" + ("?" + "&".join(parts) if parts else "")


def _pair(part: str) -> tuple[str, str, str]:
    return part.partition("=")


def split_url(url: str) -> tuple[str, dict[str, str]]:
    """The address without its query, and the query's values, which are sent with every request."""
    address, _, query = url.partition("#")[0].partition("?")
    return address, dict(parse_qsl(query, keep_blank_values=True))


def secrets_of(url: str) -> list[str]:
    """Secrets that `redact_url` hides and messages must not contain, as written and decoded, longest first."""
    query = url.partition("#")[0].partition("?")[2]
    found = set()
    for name, equals, value in map(_pair, query.split("&")):
        value = value if equals else name
        found |= {text for text in (value, unquote(value), unquote_plus(value)) if len(text) >= _LEAST_SECRET}
        if value and equals:
            found.add(f"{name}={value}")
    return sorted(found, key=len, reverse=True)


def redact(data: Any) -> Any:
    """A copy of JSON-like settings for a file, without tokens and keys (by field) or possible secrets in addresses.

    Settings are compared only after both sides went through it, so a run continues with a different key, and so does
    one whose folder was written with the key.
    """
    if isinstance(data, dict):
        return {
            key: HIDDEN if key in _SECRET_FIELDS and isinstance(item, str) and item else redact(item)
            for key, item in data.items()
        }
    if isinstance(data, list | tuple):
        return [redact(item) for item in data]
    if isinstance(data, str) and (found := _ADDRESS.fullmatch(data)):
        return found[1] + redact_url(found[2])
    return data


def redact_words(words: Sequence[str]) -> list[str]:
    """Command-line words with their values treated by `redact`."""
    found, field = [], ""
    for word in words:
        option, equals, value = word.partition("=")
        if word.startswith("--"):
            field = option.removeprefix("--").replace("-", "_")
            found.append(option + equals + redact({field: value})[field] if equals else word)
        else:
            found.append(redact({field: word})[field])
    return found


def without_folders(value: Any) -> Any:
    """A copy of JSON-like data for a page or a model card that others see; absolute paths keep only their last name.

    The folders above may reveal a user's name, a cluster's disks or a project's code name, and are useless elsewhere.
    Relative paths and hub ids stay.
    """
    if isinstance(value, dict):
        return {key: item if _TEXTS.search(str(key)) else without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, str):
        name, equals, rest = value.partition("=")  # a task, as NAME=FILE
        if equals and re.fullmatch(r"[\w.@-]+", name) and _is_absolute(rest):
            return f"{name}={_last(rest)}"
        return _last(value) if _is_absolute(value) else value
    return value


def command_without_folders(command: str) -> str:
    """A shell command with its words treated by `without_folders`."""
    words, field = [], ""
    for word in shlex.split(command):
        if word.startswith("--"):
            field = word.partition("=")[0]
            option, equals, value = word.partition("=")
            words.append(option + equals + without_folders({field: value})[field])
        else:
            words.append(without_folders({field: word})[field])
    return shlex.join(words)


def _is_absolute(text: str) -> bool:
    return bool(re.match(r"/|~[\w.-]*/|[A-Za-z]:[\\/]", text))


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def local_name(name: str) -> str:
    """A path's last name, as Markdown code."""
    return f"`{safe(_last(name)).replace('`', chr(39)) or 'data'}`"


def hub_id(name: str | None) -> str | None:
    """The name if it can be a dataset on the hub, else `None` (a file, a folder or a generated task)."""
    if not name or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        return None
    return None if os.path.exists(Path(name).expanduser()) else name


def nearest(name: str, known: Iterable[str]) -> str:
    """Lists `known` in a sentence and, if one is close to `name`, asks if that was meant."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(known)}."
