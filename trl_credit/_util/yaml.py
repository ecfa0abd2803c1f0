"""YAML as recipes use it: the core schema of YAML 1.2, in which `no` is text and `1e-6` a number."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


_CORE = (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Rejects a key that is listed twice in one mapping; YAML would keep the last."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}

    def flatten_mapping(self, node):
        seen = set()
        for key, _ in node.value:
            if key.tag != _TAG + "merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is listed twice", problem_mark=key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)

    def construct_number(self, node):
        text = node.value.lower()
        if node.tag == _TAG + "int":
            return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
        return float(re.sub(r"\.(inf|nan)$", r"\1", text))


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as something else."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}


for _kind in (_Loader, _Dumper):
    for _name, _pattern, _first in _CORE:
        _kind.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
for _name in ("int", "float"):
    _Loader.add_constructor(_TAG + _name, _Loader.construct_number)


def load_mapping(text: str, types: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Parses YAML text that is a mapping of names to values.

    Args:
        text: YAML, or JSON.
        types: Types of the fields by name. A number in a text field stays text as written (the revision `1e10`), also
            in lists and in fields of dataclasses. In a mapping of anything, `no` is false.

    Raises:
        ValueError: The text is not YAML or not a mapping, or has a duplicate key or a key that is not text. The message
            is one line.
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise ValueError("must be a YAML mapping of fields to values")
        loader.flatten_mapping(node)
        values = {}
        for key, value in node.value:
            name = loader.construct_object(key, deep=True) if isinstance(key, yaml.ScalarNode) else key.value
            if not isinstance(name, str):
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise ValueError(f"a field's name must be text, got {shown} on line {key.start_mark.line + 1}")
            _keep_text(value, (types or {}).get(name))
            values[name] = loader.construct_object(value, deep=True)
        return values
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"not valid YAML: {error.problem or error.context}{where}{_invisible(text)}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split()) or type(error).__name__}") from None
    finally:
        loader.dispose()


def _invisible(text: str) -> str:
    """Names what YAML cannot take for a space and nobody sees, for the end of a message; empty if the text has none."""
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(r" *\t", line):
            return f". Line {number} begins with a tab: indent with spaces"
        if "\u00a0" in line.partition("#")[0]:
            return f". Line {number} has a non-breaking space: write a plain one"
    return ""


def read_mapping(
    path: str | Path, types: Mapping[str, Any] | None = None, file: str = "recipe", setting: str = "--config"
) -> dict[str, Any]:
    """Reads the mapping in a YAML file.

    Args:
        path: The file.
        types: As in [`load_mapping`].
        file: Name of the file in messages.
        setting: The setting that names it.

    Raises:
        ValueError: The file cannot be read, or is not a mapping of fields to values.
    """
    try:
        return load_mapping(Path(path).expanduser().read_text(encoding="utf-8-sig"), types)
    except OSError as error:
        raise ValueError(f"`{setting}`: cannot read {str(path)!r}: {error.strerror} (from {Path.cwd()}).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"`{setting}`: {str(path)!r} is not UTF-8 text (byte {error.start + 1}).") from None
    except ValueError as error:
        message = str(error)
        if message.startswith("must be"):
            message = f"the {file} {message}"
        raise ValueError(f"`{setting}`: {message}.".replace("..", ".")) from None


def dump(value: Any) -> str:
    """YAML text that [`load_mapping`] reads as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def _keep_text(node: yaml.Node, hint: Any) -> None:
    """Turns numbers into text if `hint` allows nothing else."""
    options = _options(hint)
    if isinstance(node, yaml.ScalarNode):
        # A list's only item may stand for the list
        options = [option for hint in options for option in _options(_item(hint) or hint)]
        if str in options and not {int, float, Any} & set(options) and node.tag in (_TAG + "int", _TAG + "float"):
            node.tag = _TAG + "str"
    elif isinstance(node, yaml.SequenceNode):
        for option in options:
            if _item(option) is not None:
                for item in node.value:
                    _keep_text(item, _item(option))
    elif isinstance(node, yaml.MappingNode):
        if not any(map(dataclasses.is_dataclass, options)):
            _keep_words(node)
        for option in options:
            if dataclasses.is_dataclass(option):
                hints = typing.get_type_hints(option)
                for key, value in node.value:
                    _keep_text(value, hints.get(key.value) if isinstance(key, yaml.ScalarNode) else None)


def _keep_words(node: yaml.Node) -> None:
    """Turns `no` and the like into booleans in arguments of other code (`{enable_thinking: no}`), whose types are
    unknown: as text, it would be true."""
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _keep_words(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _keep_words(item)
    elif node.style is None and node.tag == _TAG + "str" and node.value.lower() in ("no", "off", "yes", "on"):
        node.tag = _TAG + "bool"


def _options(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(hint) for option in _options(part)]
    if typing.get_origin(hint) is typing.Annotated:
        return _options(typing.get_args(hint)[0])
    return [hint]


def _item(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is list else None
