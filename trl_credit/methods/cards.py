"""Method cards: parameters, citation, differences from the paper.

Registered methods are parsed from source, which takes milliseconds, because importing them would import torch and TRL.
"""

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from .spec import REQUIRED, check_name
from .table import MIX, TABLE


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A method's parameter as text."""

    name: str
    type: str
    default: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Card:
    """A method's description as text.

    Args:
        name: The method's name in recipes.
        summary: One line.
        formulas: The formulas in the module's docstring; may be empty.
        paper_id: arXiv id; empty if there is no paper.
        citation: BibTeX entry; empty likewise.
        parameters: The method's fields.
        differences: Differences from the paper or its official code.
    """

    name: str
    summary: str
    formulas: str
    paper_id: str
    citation: str
    parameters: tuple[Parameter, ...]
    differences: tuple[str, ...]


def card_of(name: str) -> Card:
    """The card of a registered method, or of the class at a dotted path.

    Raises:
        ValueError: No such method.
    """
    if name in (*TABLE, MIX):
        module, cls = TABLE.get(name, (f".{MIX}", MIX.title()))
        return _from_source((Path(__file__).parent / f"{module.lstrip('.')}.py").read_text(encoding="utf-8"), cls)
    check_name(name)
    from .registry import get_method_class

    return _from_class(get_method_class(name))


def _from_source(source: str, cls: str) -> Card:
    module = ast.parse(source)
    (body,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == cls)
    doc = ast.get_docstring(body)
    values = {target.id: node.value for node in body.body if isinstance(node, ast.Assign) for target in node.targets}
    paper = {word.arg: ast.literal_eval(word.value) for word in values["paper"].keywords}
    meanings = _meanings(doc)
    parameters = tuple(
        Parameter(
            node.target.id,
            ast.unparse(node.annotation),
            REQUIRED if node.value is None else ast.unparse(node.value),
            meanings.get(node.target.id, ""),
        )
        for node in body.body
        if isinstance(node, ast.AnnAssign)
    )
    differences = ast.literal_eval(values["differences"]) if "differences" in values else ()
    return Card(
        ast.literal_eval(values["name"]),
        doc.splitlines()[0],
        _formulas(ast.get_docstring(module)),
        paper["id"],
        paper["citation"],
        parameters,
        differences,
    )


def _from_class(cls: type) -> Card:
    doc = inspect.getdoc(cls)
    meanings = _meanings(doc)
    parameters = tuple(
        Parameter(
            field.name,
            field.type.__name__ if isinstance(field.type, type) else str(field.type),
            _default_of(field),
            meanings.get(field.name, ""),
        )
        for field in dataclasses.fields(cls)
    )
    formulas = _formulas(inspect.getdoc(inspect.getmodule(cls)) or "")
    return Card(
        cls.name, doc.splitlines()[0], formulas, cls.paper.id, cls.paper.citation, parameters, tuple(cls.differences)
    )


def _default_of(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    made = field.default_factory is not dataclasses.MISSING
    return repr(field.default_factory()) if made else REQUIRED


def _formulas(doc: str) -> str:
    """The indented block after a docstring's first line."""
    found = re.search(r"\n\n((?: {4}.*\n?)+)", doc)
    return found.group(1).rstrip() if found else ""


def _meanings(doc: str) -> dict[str, str]:
    """Descriptions under a docstring's `Args:`, by argument name."""
    found: Any = re.findall(r"^    (\w+): ((?:.|\n(?!    \w+: |\S))*)", doc, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
