"""Trains a recipe: `accelerate launch -m trl_credit.train --config recipes/NAME.yaml [--any_field value]`."""

import json
import logging
import os
import sys
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import IterableDataset
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.utils.peft_utils import find_adapter_config_file
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)
from trl.trainer.utils import create_model_from_path

from ._imports import load_dotted
from ._text import log_to_terminal, prepare_terminal, safe, safe_lines
from ._yaml import load_mapping
from .checkpoint import ResumeError, checkpoint_to_resume
from .config import CreditGRPOConfig
from .data import check_solutions, load_splits, prepare, report_bare_latex, report_unparsable
from .effect import NothingTrainedError, check_rows
from .fields import ANSWER_MATCHES
from .methods.base import nearest
from .retired import unknown_fields
from .rewards import accuracy, build_reward, judged, required_columns
from .settings import AtLeast1, Specs, check_fields, check_output_dir, checked, one_of, types_of
from .trainer import CreditGRPOTrainer


logger = logging.getLogger(__name__)


def mapping_of(name: str, value: dict | str | None) -> dict | None:
    """A field that is a mapping: JSON text on the command line.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` is not valid JSON: {error.msg}.") from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping, got {value!r}.")
    return value


@dataclass
class CreditScriptArguments(ScriptArguments):
    """
    Arguments of the training script beside the trainer's, the model's and the dataset mixture's.

    `seed` (of the trainer's arguments) seeds everything: sampling, data order, splits and generated tasks.
    """

    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Dataset to evaluate on, if it is another one than `dataset_name`."},
    )
    generated_dataset_size: AtLeast1 = field(
        default=1000,
        metadata={"help": "Rows of a generated dataset (`reasoning_gym:TASK`, `trl_credit:arithmetic`)."},
    )
    generated_dataset_config: dict | str | None = field(
        default=None,
        metadata={"help": "Arguments of a generated dataset's task; JSON on the command line."},
    )
    eval_problem_column: str | None = field(
        default=None,
        metadata={"help": "Column of the problem's text in the evaluation data, if it is not `problem_column`."},
    )
    eval_answer_column: str | None = field(
        default=None,
        metadata={"help": "Column of the answer in the evaluation data, if it is not `answer_column`."},
    )
    problem_column: str | None = field(
        default=None,
        metadata={
            "help": "Field of the problem, text or a conversation (within mappings a dotted path); not needed where the "
            "dataset has a column `prompt`."
        },
    )
    answer_column: str | None = field(
        default=None,
        metadata={
            "help": "Field of the answer, such as `answer` or `reward_model.ground_truth`; rewards read it as `solution`."
        },
    )
    answer_match: one_of(*ANSWER_MATCHES) | None = field(
        default=None,
        metadata={"help": "Where the answer is a list of several: `any` of them is right, or `all` must be given."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message put before every problem."})
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "Text put around every problem, with the slot `{problem}`."},
    )
    plain_prompts: bool = field(
        default=False,
        metadata={"help": "Make prompts of plain text instead of chat messages (models without a chat template)."},
    )
    reward_funcs: Specs | None = field(
        default=None,
        metadata={
            "help": "Reward functions: `accuracy` (math-verify), `judged` (the judge of `trl-credit eval`), "
            "`reasoning_accuracy`, `think_format`, `cosine_scaled`, `repetition_penalty`, "
            "`soft_overlong_punishment`, or a path (`my_module.reward`, `my_file.py:reward`); with arguments as a mapping "
            "`{name: ..., argument: ...}` (JSON on the command line)."
        },
    )
    eval: dict | str | None = field(
        default=None,
        metadata={
            "help": "Evaluate at the end with the trainer's generation engine: a mapping of the fields of `trl-credit eval` "
            "(such as tasks, n, preset), with `every: N` also every N updates; JSON on the command line."
        },
    )
    compare: dict | str | None = field(
        default=None,
        metadata={
            "help": "Methods and seeds of `trl-credit compare`, which reads them; training does not, and wants `credit`."
        },
    )
    reward_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Reward model, by path or hub id, used beside the reward functions."},
    )
    rollout_func: str | None = field(
        default=None,
        metadata={
            "help": "Path of TRL's `rollout_func` (experimental there), which generates the completions: "
            "`my_module.function` or `my_file.py:function`."
        },
    )

    def __post_init__(self):
        if isinstance(self.reward_funcs, (str, dict)):  # a recipe with one reward
            self.reward_funcs = [self.reward_funcs]
        for name in ("generated_dataset_config", "eval", "compare"):
            setattr(self, name, mapping_of(name, getattr(self, name)))
        check_fields(self, lenient=True)


ARGUMENT_TYPES = (CreditScriptArguments, CreditGRPOConfig, ModelConfig, DatasetMixtureConfig)


def parse_arguments(
    argv: list[str],
    prog: str = "trl-credit train",
    types: tuple = ARGUMENT_TYPES,
    description: str = __doc__,
    file: str = "recipe",
) -> tuple:
    """Parses a recipe and command-line fields into dataclasses, by default `ARGUMENT_TYPES`.

    Raises:
        ValueError: The recipe cannot be read, or a field is unknown (the nearest known one is named).
    """
    parser = TrlParser(types, prog=prog, description=description, allow_abbrev=False)

    def fail(message: str):
        """One line, and not hundreds of usage."""
        raise ValueError(message)

    parser.error = fail
    argv = [part for text in argv for part in (text.split("=", 1) if text.startswith("--config=") else [text])]
    annotated = recipe_types(types)
    known = {f.name for kind in types for f in fields(kind) if f.init} | {"config", "env"}
    if not argv:
        raise ValueError("Nothing to do: give --config FILE.yaml, or the fields themselves (see --help).")
    if argv[-1] == "--config":
        raise ValueError(f"`--config` needs the path of a {file}.")
    recipe = {}
    if "--config" in argv:
        place = argv.index("--config")
        recipe = read_recipe(argv[place + 1], types, file)
        argv = argv[:place] + argv[place + 2 :]
    if "--config" in argv:
        raise ValueError(f"`--config` is there twice: one {file} has all fields, and the command line may change some.")
    on_line, left = parser.parse_known_args(argv)
    unknown = [text for text in left if text.startswith("--")]
    problem = unknown_fields(dict.fromkeys(map(field_of, unknown)), known, "on the command line") or unknown_fields(
        recipe, known - {"config"}, f"in the {file}"
    )
    if problem:
        raise ValueError(problem)
    for word in left:
        if not recipe and word.endswith((".yaml", ".yml")):
            raise ValueError(f"The {file} is given by its field: write --config {word}.")
    environment = recipe.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise ValueError(f"`env` must be a mapping of environment variables, got {environment!r}.")
    given = {field_of(text) for text in argv if text.startswith("--")}
    given = {name if name in annotated else name.removeprefix("no_") for name in given}
    values = checked(recipe | {name: getattr(on_line, name) for name in given if name in annotated}, annotated)
    parser.set_defaults_with_config(**{name: values[name] for name in recipe})
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    return parser.parse_args_and_config(argv)


def recipe_types(types: tuple = ARGUMENT_TYPES) -> dict[str, Any]:
    """The types of all fields of dataclasses, by default a recipe's, with their ranges."""
    return {name: hint for kind in types for name, hint in types_of(kind).items()}


def field_of(word: str) -> str:
    """The field that a word of the command line sets."""
    return word.removeprefix("--").partition("=")[0].replace("-", "_")


def read_recipe(path: str | Path, types: tuple = ARGUMENT_TYPES, file: str = "recipe", field: str = "--config") -> dict:
    """The fields of a YAML file, as they are written.

    Args:
        path: Of the file.
        types: Dataclasses whose fields these are.
        file: What the file is called in messages.
        field: The setting that names it.

    Raises:
        ValueError: The file cannot be read, or is no mapping of fields to values.
    """
    hints = {name: hint for kind in types for name, hint in typing.get_type_hints(kind).items()}
    if "eval" in hints:
        from .evaluation.config import EvalConfig

        hints |= {"eval": EvalConfig, "compare": Any, "credit": Any}  # whose fields have types of their own
    try:
        return load_mapping(Path(path).expanduser().read_text(encoding="utf-8-sig"), hints)
    except OSError as error:
        raise ValueError(f"`{field}`: cannot read {str(path)!r}: {error.strerror} (from {Path.cwd()}).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"`{field}`: {str(path)!r} is no UTF-8 text (byte {error.start + 1}).") from None
    except ValueError as error:
        message = str(error)
        if message.startswith("must be"):
            message = f"the {file} {message}"
        raise ValueError(f"`{field}`: {message}.".replace("..", ".")) from None


def embedded_model_path() -> str:
    """Folder of the quickstart's embedded model."""
    return str(files("trl_credit.quickstart") / "model")


def resolve_model(name: str | None) -> str:
    """The path or hub id of `model_name_or_path`; `trl_credit:quickstart` is the embedded model."""
    if not name:
        raise ValueError("`model_name_or_path` is not set.")
    if name.startswith("trl_credit:"):
        if name != "trl_credit:quickstart":
            raise ValueError(f"`model_name_or_path`: unknown {name!r}. {nearest(name, ['trl_credit:quickstart'])}")
        return embedded_model_path()
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"`model_name_or_path`: {name!r} is a file: name its folder.")
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"`model_name_or_path`: there is no folder {name!r} (looked from {Path.cwd()}).")
    return name


def base_of_adapter(adapter: str, revision: str | None = None) -> str | None:
    """The path or hub id of an adapter's base model; `None` for what is no adapter.

    Raises:
        ValueError: The adapter names none, or one that is not there.
    """
    if not find_adapter_config_file(adapter, revision=revision):
        return None
    try:
        base = PeftConfig.from_pretrained(adapter, revision=revision).base_model_name_or_path
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`model_name_or_path`: cannot read adapter_config.json in {adapter!r}: {str(error).splitlines()[0]}"
        ) from error
    if base and not Path(base).exists() and Path(base).parts[-3:] == ("trl_credit", "quickstart", "model"):
        return embedded_model_path()  # of another installation
    try:
        return resolve_model(base)
    except ValueError:
        problem = f"names the base model {base!r}, which is not there" if base else "does not name its base model"
        raise ValueError(
            f"`model_name_or_path`: the adapter {adapter!r} {problem} (looked from {Path.cwd()}). Set "
            "`base_model_name_or_path` in its adapter_config.json."
        ) from None


def continue_adapter(
    arguments: dict[str, Any], model_args: ModelConfig, keep_init_kwargs: bool = False
) -> dict[str, Any]:
    """The trainer's arguments with the model loaded, where it is an adapter: its base model with the adapter, to be trained
    on. A reference or a KL penalty then compares with the adapter as it is now.

    Args:
        arguments: Of `trainer_arguments`.
        model_args: The recipe's.
        keep_init_kwargs: Leave `model_init_kwargs` in the trainer's arguments, for a reward model.
    """
    from .evaluation.backends.local import LocalModel

    args, adapter = arguments["args"], arguments["model"]
    base = base_of_adapter(adapter, model_args.model_revision)
    if base is None:
        return arguments
    kwargs = {**(args.model_init_kwargs or {}), "quantization_config": arguments["quantization_config"]}
    kwargs.pop("revision", None)  # the adapter's
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        kwargs["device_map"] = None
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    if kwargs["quantization_config"] is None:
        del kwargs["quantization_config"]
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    try:
        model = PeftModel.from_pretrained(
            create_model_from_path(base, **kwargs),
            adapter,
            revision=model_args.model_revision,
            is_trainable=True,
            autocast_adapter_dtype="quantization_config" in kwargs or not zero3,  # as TRL makes an adapter
        )
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`model_name_or_path`: cannot read the adapter's weights in {adapter!r}: {reason}") from error
    if not keep_init_kwargs:
        args.model_init_kwargs = None
    tokenizer = LocalModel(base, adapter, model_args.model_revision, args.trust_remote_code).tokenizer()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    return arguments | {"model": model, "peft_config": None, "quantization_config": None, "processing_class": tokenizer}


def _check_adapter(adapter: str, model_args: ModelConfig) -> None:
    """Raises `ValueError` where the recipe asks for another adapter than the one that it goes on with."""
    asked = get_peft_config(model_args)
    if asked is None:
        return
    there = PeftConfig.from_pretrained(adapter, revision=model_args.model_revision)
    if there.peft_type != asked.peft_type:
        raise ValueError(
            f"`use_peft` makes a LoRA adapter, but {adapter!r} is one of kind {there.peft_type.value}. It is trained on as "
            "it is: remove `use_peft`."
        )
    wrong = []
    for name, attribute in (
        ("lora_r", "r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
        ("use_rslora", "use_rslora"),
        ("use_dora", "use_dora"),
    ):
        ours, theirs = getattr(asked, attribute), getattr(there, attribute)
        if ours != theirs:
            wrong.append(f"`{name}` is {ours}, the adapter's {theirs}")
    if wrong:
        raise ValueError(
            f"`model_name_or_path`: the adapter {adapter!r} is trained on as it is, but {'; '.join(wrong)}. Remove "
            "`use_peft` and the LoRA settings, or name the base model for a new adapter."
        )


def check_model(model: str, train_dataset, **kwargs) -> None:
    """Raises `ValueError` unless the configuration and tokenizer of the model, or of an adapter's base model, can be loaded
    (with the keyword arguments of `from_pretrained`) and fit the prompts."""
    base = base_of_adapter(model, kwargs.get("revision"))
    try:
        if base is None:
            AutoConfig.from_pretrained(model, **kwargs)
            processing_class = AutoProcessor.from_pretrained(model, **kwargs)
        else:
            AutoConfig.from_pretrained(base, **kwargs | {"revision": None})
            try:
                processing_class = AutoProcessor.from_pretrained(model, **kwargs)
            except (OSError, ValueError):
                processing_class = AutoProcessor.from_pretrained(base, **kwargs | {"revision": None})
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"`model_name_or_path`: {model!r} is neither a local folder with a model and its tokenizer nor one that the "
            f"hub gives: {reason}"
        ) from error
    images = [name for name in ("image", "images") if name in (train_dataset.column_names or ())]
    if images and not isinstance(processing_class, ProcessorMixin):
        raise ValueError(
            f"The data has a column {images[0]!r}, which TRL shows to the model, but {model!r} reads text only. Leave the "
            "column out or rename it, or use a vision-language model."
        )
    prompt = next(iter(train_dataset), {}).get("prompt")
    if isinstance(prompt, list) and getattr(processing_class, "chat_template", None) is None:
        raise ValueError(
            f"The prompts are chat messages, but the tokenizer of {model!r} has no chat template. Set `plain_prompts: true` "
            "to make plain-text prompts, or use a model with a chat template."
        )


def build_datasets(script_args, training_args, dataset_args) -> tuple:
    """The training and (or `None`) evaluation dataset, with the columns that TRL and the rewards read."""
    generated = {
        "generated_size": script_args.generated_dataset_size,
        "generated_config": script_args.generated_dataset_config,
    }
    texts = [getattr(script_args, name) for name in ("problem_column", "answer_column")]
    texts += [getattr(script_args, f"eval_{name}") for name in ("problem_column", "answer_column")] + ["prompt"]
    if dataset_args.datasets:
        if script_args.dataset_name:
            raise ValueError("Both `datasets` and `dataset_name` are set: set one of the two.")
        splits = get_dataset(dataset_args)
    elif script_args.dataset_name:
        splits = load_splits(
            script_args.dataset_name,
            config=script_args.dataset_config,
            streaming=script_args.dataset_streaming,
            seed=training_args.seed,
            text_columns=texts,
            **generated,
        )
    else:
        raise ValueError("Set `dataset_name` (a file, a folder, a hub id, `reasoning_gym:TASK`) or `datasets`.")

    def split(of: dict, name: str, setting: str):
        if name not in of:
            raise ValueError(f"`{setting}`: there is no split {name!r}. {nearest(name, of)}")
        return of[name]

    train, evaluation = split(splits, script_args.dataset_train_split, "dataset_train_split"), None
    if training_args.eval_strategy != "no":
        if script_args.eval_dataset_name:
            # Another seed, so that a generated task does not repeat the training rows
            others = load_splits(
                script_args.eval_dataset_name, seed=training_args.seed + 1, text_columns=texts, **generated
            )
            name = script_args.dataset_test_split
            evaluation = others[name] if name in others else split(others, "train", "eval_dataset_name")
        elif script_args.dataset_test_split in splits:
            evaluation = splits[script_args.dataset_test_split]
        elif dataset_args.test_split_size and not isinstance(train, IterableDataset):
            parts = train.train_test_split(test_size=dataset_args.test_split_size, seed=training_args.seed)
            train, evaluation = parts["train"], parts["test"]
        else:
            raise ValueError(
                f"`eval_strategy` is {training_args.eval_strategy.value!r}, but there is no split "
                f"{script_args.dataset_test_split!r}: set `eval_dataset_name`, `dataset_test_split` or "
                "`test_split_size`."
            )
    names = ("problem_column", "answer_column", "answer_match", "system_prompt", "prompt_template", "plain_prompts")
    columns = {name: getattr(script_args, name) for name in names}
    prepared = prepare(train, **columns)
    if evaluation is None:
        return prepared, None
    for name in ("problem_column", "answer_column"):
        columns[name] = getattr(script_args, f"eval_{name}") or columns[name]
    return prepared, prepare(evaluation, **columns)


def build_rewards(script_args, training_args, train_dataset) -> list:
    """The reward functions, checked against the dataset's columns; a reward model by its name."""
    functions = [build_reward(spec, training_args.max_completion_length) for spec in script_args.reward_funcs or []]
    if not functions and not script_args.reward_model_name_or_path:
        raise ValueError("No reward: set `reward_funcs` or `reward_model_name_or_path`.")
    names = train_dataset.column_names
    for function in functions:
        for column in required_columns(function):
            if names is not None and column not in names:
                hint = " (set `answer_column`)" if column == "solution" else ""
                raise ValueError(
                    f"`reward_funcs`: {getattr(function, '__name__', function)!r} needs a dataset column "
                    f"{column!r}{hint}. {nearest(column, names)}"
                )
    if script_args.answer_column is None:
        check_solutions(train_dataset, functions)
    for function in functions:
        if getattr(function, "func", function) in (accuracy, judged):  # with arguments it is a partial
            report_unparsable(train_dataset, function)
    if accuracy in functions:
        report_bare_latex(train_dataset)
    models = [script_args.reward_model_name_or_path] if script_args.reward_model_name_or_path else []
    return models + functions


def trainer_arguments(script_args, training_args, model_args, dataset_args) -> dict[str, Any]:
    """What the trainer is constructed with; no model is loaded yet.

    Raises:
        ValueError: Settings, data or rewards that cannot work.
    """
    if training_args.max_completion_length is None:
        raise ValueError("`max_completion_length` must be at least 1, got None.")
    check_output_dir(training_args.output_dir)
    check_trackers(training_args.report_to)
    model = resolve_model(model_args.model_name_or_path)
    if base_of_adapter(model, model_args.model_revision) is not None:
        _check_adapter(model, model_args)
    train_dataset, eval_dataset = build_datasets(script_args, training_args, dataset_args)
    check_rows(train_dataset, training_args)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    return {
        "model": model,
        "reward_funcs": build_rewards(script_args, training_args, train_dataset),
        "args": training_args,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
        "rollout_func": load_rollout(script_args.rollout_func),
    }


def check_trackers(names: list[str]) -> None:
    """Raises `ValueError` for a tracker of `report_to` whose package is not installed."""
    for name in names:
        if name not in ("all", "none", *get_available_reporting_integrations()):
            raise ValueError(f"`report_to`: {name!r} is not installed. Install it, or set `report_to: none`.")


def load_rollout(path: str | None) -> Callable | None:
    """The rollout function at a path.

    Raises:
        ValueError: There is none.
    """
    if path is None:
        return None
    try:
        function = load_dotted(path)
    except ImportError as error:
        raise ValueError(f"`rollout_func`: cannot load {path!r}: {error}") from error
    if not callable(function):
        raise ValueError(f"`rollout_func`: {path!r} is no function, but {type(function).__name__}.")
    return function


def main(argv: list[str] | None = None) -> CreditGRPOTrainer:
    """Trains, saves and (if asked) pushes a recipe; returns the trainer. What is wrong with the recipe or its data is
    said in one line, with exit status 2, before a model is loaded wherever that can be known. A run that trains nothing,
    or whose numbers are not finite, saves no model and exits with status 1."""
    prepare_terminal()
    log_to_terminal()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)  # TRL sets it
    try:
        script_args, training_args, model_args, dataset_args = parse_arguments(sys.argv[1:] if argv is None else argv)
        arguments = trainer_arguments(script_args, training_args, model_args, dataset_args)
        evaluation = None
        if script_args.eval is not None:
            from .evaluation.training import TrainingEvaluation

            evaluation = TrainingEvaluation.from_recipe(script_args.eval, script_args, training_args)
        check_model(
            arguments["model"],
            arguments["train_dataset"],
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
        )
        if PartialState().is_main_process:  # the others follow it when the trainer asks once more
            checkpoint_to_resume(training_args.resume_from_checkpoint, training_args.output_dir)
        trainer = CreditGRPOTrainer(
            **continue_adapter(arguments, model_args, script_args.reward_model_name_or_path is not None)
        )
        if evaluation is not None:
            evaluation.attach(trainer)
    except (ValueError, TypeError, OSError, ImportError) as error:
        logger.debug("", exc_info=True)
        if PartialState().is_main_process:
            print(f"trl-credit train: error: {safe_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    try:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    except SystemExit:  # after SIGTERM; the checkpoint is saved
        _close(trainer)
        raise
    except (ResumeError, NothingTrainedError, FloatingPointError) as error:
        logger.debug("", exc_info=True)
        if PartialState().is_main_process:
            print(f"trl-credit train: error: {safe_lines(error)} No model is saved.", file=sys.stderr)
        _close(trainer)
        raise SystemExit(2 if isinstance(error, ResumeError) else 1) from error
    except ImportError as error:  # an optimizer's or a kernel's package, which transformers looks for only now
        logger.debug("", exc_info=True)
        if PartialState().is_main_process:
            print(f"trl-credit train: error: {safe_lines(error)}", file=sys.stderr)
        _close(trainer)
        raise SystemExit(2) from error
    trainer.save_model(training_args.output_dir)
    trainer.create_model_card(dataset_name=script_args.dataset_name)
    trainer.accelerator.print(f"Model saved to {safe(training_args.output_dir)}.")
    if evaluation is not None:
        from .evaluation.backends.base import BackendError
        from .evaluation.store import RunFolderError

        try:
            evaluation.at_end()
        except (BackendError, RunFolderError) as error:
            if PartialState().is_main_process:
                print(f"trl-credit train: evaluation: error: {safe_lines(error)}", file=sys.stderr)
            _close(trainer)
            raise SystemExit(1) from error
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    _close(trainer)
    return trainer


def _close(trainer: CreditGRPOTrainer) -> None:
    if hasattr(trainer, "end"):  # transformers >= 5.18: closes trackers and the process group
        trainer.end()


if __name__ == "__main__":
    main()
