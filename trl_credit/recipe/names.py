"""Names of a recipe's fields, read from the source of the classes that define them: importing those takes many seconds."""

import ast
import dataclasses
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from ..methods.cards import card_of
from ..methods.table import TABLE


@dataclasses.dataclass(frozen=True)
class _Source:
    """A dataclass in a file of a package."""

    package: str
    file: str
    name: str


# The dataclasses of every recipe, with their bases
_COMMON = (
    _Source("transformers", "training_args.py", "TrainingArguments"),
    _Source("trl", "trainer/base_config.py", "_BaseConfig"),
    _Source("trl", "trainer/grpo_config.py", "GRPOConfig"),
    _Source("trl", "trainer/model_config.py", "ModelConfig"),
    _Source("trl", "scripts/utils.py", "DatasetMixtureConfig"),
    _Source("trl", "scripts/utils.py", "ScriptArguments"),
    _Source("trl_credit", "extras/config.py", "GRPOExtrasConfig"),
    _Source("trl_credit", "trainer/config.py", "CreditGRPOConfig"),
    _Source("trl_credit", "recipe/recipe.py", "CreditScriptArguments"),
)
# That of each trainer, besides
_OWN = {
    "grpo": (),
    "diffusion": (_Source("trl_credit", "trainer/diffusion_config.py", "DiffusionGRPOConfig"),),
    "image_tokens": (_Source("trl_credit", "trainer/image_tokens_config.py", "ImageTokenGRPOConfig"),),
}


@functools.cache
def recipe_field_names(trainer: str = "grpo") -> frozenset[str] | None:
    """Names of the fields that a recipe may have, besides `env`. `None` if they cannot be told without importing, as with a
    release of TRL that has moved a class.

    Args:
        trainer: The recipe's `trainer`.
    """
    try:
        return frozenset(name for source in (*_COMMON, *_OWN[trainer]) for name in _fields(source))
    except (OSError, SyntaxError, LookupError):
        return None


def _fields(source: _Source) -> Iterator[str]:
    found = importlib.util.find_spec(source.package)  # of a package's top, this imports nothing
    if found is None or not found.submodule_search_locations:
        raise LookupError(source.package)
    path = Path(found.submodule_search_locations[0]) / source.file
    classes = (node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    body = next((node.body for node in classes if node.name == source.name), None)
    if body is None:
        raise LookupError(source.name)
    for node in body:
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).startswith("ClassVar"):
            keywords = node.value.keywords if isinstance(node.value, ast.Call) else []
            if not any(word.arg == "init" for word in keywords):  # only `init=False` is ever written
                yield node.target.id


def parameter_hint(name: str, field: str = "credit") -> str | None:
    """If an unknown field is a parameter of a credit method, says where to write it.

    Args:
        name: The unknown field.
        field: The field that takes methods.
    """
    for method in TABLE:
        if name in {parameter.name for parameter in card_of(method).parameters}:
            example = f"{{method: {method}, {name}: ...}}"
            where = f"on the command line --{field} '{example}'"
            return f"it is a parameter of a credit method: write `{field}: {example}`, {where}"
    return None
