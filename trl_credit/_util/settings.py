"""Ranges of settings: a type for each field, declared beside it or in [`INHERITED`], and one check for all of them.

    num_items: Annotated[Whole, Ge(2)] = 200

Fields of our own dataclasses carry their types. `INHERITED` has types for fields of TRL and transformers whose
annotations do not limit them; a value stays legal if TRL or transformers gives it a meaning.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Strict, TypeAdapter, ValidationError

from .text import nearest
from .values import is_false, is_true


@dataclasses.dataclass(frozen=True)
class Rule:
    """Type metadata: the range in words, for `must be ...`, if the generated words would not do."""

    text: str


@dataclasses.dataclass(frozen=True)
class As:
    """Type metadata: the type to check, if argparse must see a simpler one."""

    hint: Any


@dataclasses.dataclass(frozen=True)
class Fields:
    """Metadata of a mapping's type: the dataclass that defines its fields and the types in which YAML is read."""

    of: type


def _number(value: Any) -> Any:
    """A number, or text that spells one: YAML 1.1 and quoted JSON leave `5e-1` as text."""
    if isinstance(value, bool):
        raise ValueError("a boolean")
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = float(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        value = float(value)
        if math.isnan(value):
            raise ValueError("not a number")
    return value


def _flag(value: Any) -> Any:
    return True if is_true(value) else False if is_false(value) else value


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, AllowInfNan(True), BeforeValidator(_number)]  # may be infinite, never NaN
Finite = Annotated[float, AllowInfNan(False), BeforeValidator(_number)]
Flag = Annotated[bool, Strict(), BeforeValidator(_flag)]
Text = Annotated[str, Strict()]

AtLeast1 = Annotated[Whole, Ge(1)]
NonNegativeInt = Annotated[Whole, Ge(0)]
Positive = Annotated[Finite, Gt(0)]
NonNegative = Annotated[Finite, Ge(0)]
Share = Annotated[Finite, Ge(0), Le(1)]
PositiveShare = Annotated[Finite, Gt(0), Le(1)]
Seed = Annotated[Whole, Ge(0), Lt(2**32), Rule("between 0 and 2**32 - 1")]
Port = Annotated[Whole, Ge(1), Le(65_535)]

DTYPES = ("auto", "bfloat16", "float16", "float32")


def one_of(*values: str) -> Any:
    """The type of a text with these values."""
    return Annotated[str, As(Annotated[Literal[tuple(values)], BeforeValidator(_plain)])]


def _trackers() -> Any:
    """The type of `report_to`."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    known = one_of("all", "none", *INTEGRATION_TO_CALLBACK)
    return known | list[known] | None


# Names, or mappings of a name and its arguments; JSON or YAML on the command line
Specs = Annotated[list[str], As(list[str | dict])]
# A field that its owner checks
Unchecked = As(Any)


# Fields of TrainingArguments, GRPOConfig, ModelConfig, ScriptArguments and DatasetMixtureConfig. Others have the type
# that their class declares: finite or whole numbers, booleans, or the values of an enumeration or of `choices`. A function
# makes a type whose values take long to import.
INHERITED: dict[str, Any] = {
    # transformers: length of the run and its batches
    "per_device_train_batch_size": AtLeast1,
    "per_device_eval_batch_size": AtLeast1,
    "gradient_accumulation_steps": AtLeast1,
    "num_train_epochs": NonNegative,
    "max_steps": Annotated[Literal[-1] | AtLeast1, Rule("at least 1, or -1 for whole epochs")],
    "eval_accumulation_steps": AtLeast1 | None,
    # transformers: optimizer
    "learning_rate": NonNegative,
    "weight_decay": NonNegative,
    "adam_beta1": Annotated[Finite, Ge(0), Lt(1)],
    "adam_beta2": Annotated[Finite, Ge(0), Lt(1)],
    "adam_epsilon": NonNegative,
    "max_grad_norm": Annotated[Number, Ge(0)],  # 0 disables clipping, and infinity only measures
    "warmup_steps": NonNegative,
    "label_smoothing_factor": Share,
    "neftune_noise_alpha": NonNegative | None,
    # transformers: intervals; below 1, shares of the run
    "logging_steps": NonNegative,
    "eval_steps": NonNegative | None,
    "save_steps": NonNegative,
    "eval_delay": NonNegative,
    "torch_empty_cache_steps": AtLeast1 | None,
    "save_total_limit": Whole | None,  # at 0 and below transformers deletes nothing
    # transformers: the rest
    "seed": Seed,
    "data_seed": Seed | None,
    "report_to": _trackers,
    "include_num_input_tokens_seen": one_of("all", "non_padding", "no") | Flag,
    "train_sampling_strategy": one_of("random", "sequential", "group_by_length"),
    "dataloader_num_workers": NonNegativeInt,
    "dataloader_prefetch_factor": AtLeast1 | None,
    "ddp_bucket_cap_mb": NonNegativeInt | None,
    "ddp_timeout": AtLeast1,
    "fsdp": Any,  # true, or text or a list in older recipes
    # GRPO: generation
    "num_generations": Annotated[Whole, Ge(2)],
    "num_generations_eval": AtLeast1 | None,
    "max_completion_length": AtLeast1 | None,
    "generation_batch_size": AtLeast1 | None,
    "steps_per_generation": AtLeast1 | None,
    "pad_to_multiple_of": Annotated[
        AtLeast1 | one_of("auto", "none", "null") | None, Rule("at least 1, 'auto' or unset")
    ],
    "temperature": Positive,
    "top_p": PositiveShare,
    "top_k": Annotated[Whole, Ge(-1), Rule("at least 0 (0 is all tokens; so is -1, with `use_vllm`)")] | None,
    "min_p": Share | None,
    "repetition_penalty": Positive,
    "max_tool_calling_iterations": NonNegativeInt | None,
    # GRPO: vLLM
    "vllm_mode": one_of("colocate", "server"),
    "vllm_model_impl": one_of("vllm", "transformers", "auto"),
    "vllm_server_port": Port,
    "vllm_group_port": Port,
    "vllm_server_timeout": NonNegative,
    "vllm_gpu_memory_utilization": PositiveShare,
    "vllm_max_model_length": AtLeast1 | None,
    "vllm_tensor_parallel_size": AtLeast1,
    "vllm_importance_sampling_mode": one_of("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "vllm_importance_sampling_clip_max": Annotated[Number, Gt(0)] | None,
    "vllm_importance_sampling_clip_min": NonNegative | None,
    "vllm_importance_sampling_cap": Annotated[Number, Gt(0)] | None,
    # GRPO: loss
    "loss_type": one_of("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "luspo", "cispo", "vespo"),
    "beta": NonNegative,
    "num_iterations": AtLeast1,
    "epsilon": Annotated[Number, Ge(0)],  # at infinity nothing is clipped
    "epsilon_high": Annotated[Number, Ge(0)] | None,
    "delta": Annotated[Number, Gt(0)] | None,
    "sapo_temperature_neg": Positive,
    "sapo_temperature_pos": Positive,
    "vespo_k_pos": NonNegative,
    "vespo_k_neg": NonNegative,
    "vespo_lambda_pos": NonNegative,
    "vespo_lambda_neg": NonNegative,
    "scale_rewards": one_of("group", "batch", "none") | Flag,
    "multi_objective_aggregation": one_of("sum_then_normalize", "normalize_then_sum"),
    "router_aux_loss_coef": NonNegative | None,
    "off_policy_mask_threshold": Annotated[Number, Gt(0)] | None,
    "top_entropy_quantile": Share,
    "entropy_coef_delta": NonNegative,
    "entropy_target": NonNegative,
    "ref_model_mixup_alpha": Share,
    "ref_model_sync_steps": AtLeast1,
    "num_completions_to_print": NonNegativeInt | None,
    # Model
    "lora_r": AtLeast1,
    "lora_alpha": AtLeast1,
    "lora_dropout": Annotated[Finite, Ge(0), Lt(1)],
    # Data
    "test_split_size": Annotated[
        Annotated[Finite, Gt(0), Lt(1)] | AtLeast1 | None, Rule("a share between 0 and 1 or a number of rows")
    ],
}  # fmt: skip

# Hints for values of other projects or older releases, by field and value
_VALUE_HINTS = {
    ("optim", "adamw"): "PyTorch's is `adamw_torch_fused`, or `adamw_torch`.",
    ("optim", "adamw_hf"): "PyTorch's is `adamw_torch_fused`, or `adamw_torch`.",
    ("scale_rewards", "gdpo"): "GDPO is `multi_objective_aggregation: normalize_then_sum`.",
    ("loss_type", "gspo"): "GSPO is `importance_sampling_level: sequence` with `loss_type: grpo`.",
    ("loss_type", "gcpo"): "GCPO is `credit: gcpo`, with any of these losses.",
    ("loss_type", "dgpo"): "DGPO is `credit: dgpo`, with any of these losses.",
}

_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_ANYTHING = ConfigDict(arbitrary_types_allowed=True)


def types_of(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields by name, with their ranges."""
    return dict(_types_of(cls))


def yaml_types_of(cls: type) -> dict[str, Any]:
    """The types in which YAML is read, by field: those in [`As`] and [`Fields`], else the annotations.

    An unchecked field is read as annotated, unless it is a mapping, whose entries have types of their own.
    """
    found = typing.get_type_hints(cls)
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for meta in getattr(hint, "__metadata__", ()):
            if isinstance(meta, Fields):
                found[name] = meta.of
            elif isinstance(meta, As) and (meta.hint is not Any or dict in map(_base, _options(found[name]))):
                found[name] = meta.hint
    return found


@functools.cache
def _types_of(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {}
    for field in dataclasses.fields(cls):
        owner = next(c for c in cls.__mro__ if field.name in inspect.get_annotations(c))
        ours = owner.__module__.partition(".")[0] == __name__.partition(".")[0]
        choices = None if ours else field.metadata.get("choices")
        if not ours and field.name in INHERITED:
            inherited = INHERITED[field.name]
            found[field.name] = _strict(inherited() if isinstance(inherited, types.FunctionType) else inherited)
        elif choices:
            values = one_of(*choices)
            found[field.name] = _strict(values | None if type(None) in _options(hints[field.name]) else values)
        else:
            found[field.name] = _strict(hints[field.name])
    return found


def _strict(hint: Any) -> Any:
    """The type as this module checks it: booleans are not numbers, and an enumeration stands for its values."""
    if typing.get_origin(hint) is Annotated:
        for meta in hint.__metadata__:
            if isinstance(meta, As):
                return _strict(meta.hint)
        inner = typing.get_args(hint)[0]
        if any(isinstance(meta, Fields) for meta in hint.__metadata__):
            return _strict(inner)
        return Annotated[(_strict(inner), *hint.__metadata__)] if len(_options(inner)) > 1 else hint
    options = _options(hint)
    if len(options) > 1:
        kinds = [option for option in options if isinstance(option, type) and issubclass(option, Enum)]
        options = [option for option in options if not (kinds and option is str)]  # transformers' `Enum | str`
        return functools.reduce(lambda a, b: a | b, (_strict(option) for option in options))
    if typing.get_origin(hint) is list:
        return list[_strict(typing.get_args(hint)[0])]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _strict(one_of(*(member.value for member in hint)))
    simple = {int: Whole, float: Finite, bool: Flag, str: Text, dict: dict, type(None): type(None)}
    if typing.get_origin(hint) is dict:
        return dict
    if typing.get_origin(hint) is Literal:
        return hint
    return simple.get(hint, Any) if isinstance(hint, type) else Any


def _options(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(hint) for option in _options(part)]
    return [hint]


def _base(option: Any) -> Any:
    """A type's base: `int`, `float`, `bool`, `str`, `list`, `dict`, `Literal`, `Any`, or `NoneType`."""
    while typing.get_origin(option) is Annotated:
        option = typing.get_args(option)[0]
    return typing.get_origin(option) or option


@functools.cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint, config=_ANYTHING)


def _limits(option: Any) -> str:
    """A type's range in words."""
    meta = option.__metadata__ if typing.get_origin(option) is Annotated else ()
    least, above, most, below = (
        next((getattr(m, name) for m in meta if isinstance(m, kind)), None)
        for kind, name in ((Ge, "ge"), (Gt, "gt"), (Le, "le"), (Lt, "lt"))
    )
    if least is not None and most is not None:
        return f"between {least} and {most}"
    if most is None and below is None:
        if above == 0:
            return "positive"
        if least == 0 and _base(option) is float:
            return "non-negative"
    parts = (("at least", least), ("above", above), ("at most", most), ("below", below))
    return " and ".join(f"{words} {limit}" for words, limit in parts if limit is not None)


def _kind(option: Any) -> str:
    base = _base(option)
    if base is list:
        item = typing.get_args(option)[0]
        return "a list of " + {int: "whole numbers", float: "numbers", str: "texts"}.get(
            _base(item), "names or mappings"
        )
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}.get(
        base, ""
    )


def _message(name: str, hint: Any, value: Any, error: ValidationError) -> str:
    """Explains what is wrong with a value, in a sentence or two."""
    kinds = {found["type"] for found in error.errors(include_url=False, include_context=False, include_input=False)}
    options = [option for option in _options(hint) if option is not type(None)]
    flattened = [
        part for option in options for part in _options(typing.get_args(option)[0] if _rule(option) else option)
    ]
    shown = repr(value)
    if isinstance(value, dict | list) and len(shown) > 60:
        shown = f"a {'mapping' if isinstance(value, dict) else 'list'}"
    rule = next(filter(None, map(_rule, options)), None)
    literals = [v for option in flattened if _base(option) is Literal for v in _literal_values(option)]
    if literals and rule is None:
        if any(_base(option) is bool for option in options):
            literals += ["true", "false"]
        hint_text = _VALUE_HINTS.get((name, value if isinstance(value, str) else None))
        return f"`{name}`: unknown value {shown}. {hint_text or _known(value, list(map(str, literals)))}"
    if isinstance(value, float) and math.isinf(value) and "finite_number" in kinds:
        return f"`{name}` must be finite, got {shown}."
    numeric = [option for option in flattened if _base(option) in (int, float)]
    if numeric and not any(_base(option) in (list, dict) for option in options):
        kind, limits = _kind(numeric[0]), rule or _limits(numeric[0])
        if kinds & _RANGE_ERRORS:
            return f"`{name}` must be {limits}, got {shown}."
        if limits in ("positive", "non-negative"):
            return f"`{name}` must be {kind.replace('a ', f'a {limits} ', 1)}, got {shown}."
        return f"`{name}` must be {kind}{f', {limits}' if limits else ''}, got {shown}."
    if dict in map(_base, options):
        return f"`{name}` must be a mapping, got {shown}."
    kind = " or ".join(dict.fromkeys(filter(None, map(_kind, options)))) or "something else"
    if kind == "true or false" and type(None) in _options(hint):
        kind = "true, false or unset"
    quote = " Quote it if it is meant as text." if kind == "text" and isinstance(value, bool | int | float) else ""
    return f"`{name}` must be {kind}, got {shown}.{quote}"


def _known(value: Any, literals: list[str]) -> str:
    """Lists the known values and suggests one: the shortest that begins with `value`, else a similar one."""
    begins = sorted((text for text in literals if isinstance(value, str) and text.startswith(value) and value), key=len)
    return nearest(begins[0] if begins else str(value), literals)


def _rule(option: Any) -> str | None:
    meta = option.__metadata__ if typing.get_origin(option) is Annotated else ()
    return next((m.text for m in meta if isinstance(m, Rule)), None)


def _literal_values(option: Any) -> tuple:
    while typing.get_origin(option) is Annotated:
        option = typing.get_args(option)[0]
    return typing.get_args(option)


def checked(values: Mapping[str, Any], types: Mapping[str, Any], lenient: bool = False) -> dict[str, Any]:
    """Checks values and converts them to their types.

    Text such as `5e-1`, `no` and `null` becomes what the field takes, and a single value becomes a list if the field is
    one. Values that are already right are returned unchanged.

    Args:
        values: Values by field.
        types: Types from [`types_of`]; fields without one are not checked.
        lenient: Whether to check only numbers, booleans and fixed sets of values, because Python code may set other
            fields to objects.

    Raises:
        ValueError: Names every field with a wrong value, and what it must be.
    """
    found, problems = {}, []
    for name, value in values.items():
        found[name] = value
        hint = types.get(name, Any)
        options = _options(hint)
        bases = {_base(option) for option in options} - {type(None)}
        if Any in bases or (lenient and bases <= {str, dict, list} and not _is_numeric_list(options)):
            continue
        # For these types, None means empty
        optional = type(None) in options or bases & {bool, list, dict} or (lenient and str in bases)
        if optional and not {str, Literal} & bases and isinstance(value, str) and value.lower() in ("none", "null"):
            value = found[name] = None
        if value is None and optional:
            continue
        if hasattr(value, "tolist"):  # a scalar or array of NumPy or torch
            value = value.tolist()
        if bases == {list} and not isinstance(value, list | tuple | set):
            value = [value]
        elif lenient and isinstance(value, tuple | set):
            value = list(value)
        if dict in bases and isinstance(value, str):
            continue  # JSON, which the field's owner parses
        try:
            new = _adapter(hint).validate_python(value)
        except ValidationError as error:
            problems.append(_message(name, hint, found[name], error))
            continue
        old = found[name]
        alike = type(new) is type(old) or (isinstance(old, int) and isinstance(new, float)) or Literal in bases
        found[name] = old if alike and _equal(new, old) else new
    if problems:
        raise ValueError(" ".join(problems))
    return found


def takes_one_or_several(hint: Any) -> bool:
    """Whether a field takes a text or a list."""
    bases = set(map(_base, _options(hint)))
    return list in bases and bool(bases & {str, Literal})


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (ValueError, RuntimeError):  # arrays
        return False


def _is_numeric_list(options: Iterable[Any]) -> bool:
    items = [typing.get_args(option)[0] for option in options if typing.get_origin(option) is list]
    return any(_base(part) in (int, float, bool, Literal) for item in items for part in _options(item))


def check_fields(settings: Any, lenient: bool = False) -> None:
    """Checks a dataclass object's fields with [`checked`] and stores the converted values.

    Raises:
        ValueError: Names every field with a wrong value.
    """
    types = types_of(type(settings))
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.init}
    for name, value in checked(values, types, lenient).items():
        if value is not values[name]:
            object.__setattr__(settings, name, value)  # the object may be frozen


def check_value(name: str, value: Any, hint: Any) -> Any:
    """[`checked`] for one value."""
    return checked({name: value}, {name: hint})[name]


def check_output_dir(path: str | os.PathLike, name: str = "output_dir") -> None:
    """Raises `ValueError` unless the folder is writable or can be created. Creates nothing."""
    if not str(path):
        raise ValueError(f"`{name}` is empty. Name a folder.")
    folder = Path(path).expanduser().absolute()
    problem = None
    for place in (folder, *folder.parents):
        try:
            place.stat()
        except NotADirectoryError:
            continue  # a file is higher up in the path
        except FileNotFoundError:
            if place.is_symlink():
                problem = f"{str(place)!r} is a link to nothing"
                break
            continue
        except OSError as error:
            problem = (error.strerror or str(error)).lower()
            break
        if not place.is_dir():
            problem = "it is a file, not a folder" if place == folder else f"{str(place)!r} is a file"
        elif not os.access(place, os.W_OK | os.X_OK):
            problem = "no permission"
        break
    if problem:
        raise ValueError(f"`{name}`: cannot write to {str(path)!r}: {problem}. Name another folder.")
