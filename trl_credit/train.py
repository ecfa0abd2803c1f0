"""Trains a recipe: `accelerate launch -m trl_credit.train --config recipes/NAME.yaml [--any_field value]`."""

import json
import logging
import sys
import warnings
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from datasets import IterableDataset
from transformers import AutoConfig, AutoProcessor
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from ._text import log_to_terminal, prepare_terminal, safe, safe_lines
from .checkpoint import checkpoint_to_resume
from .config import IMPORTANCE_SAMPLING_LEVELS, RATIO_GRADIENT_LOSSES, CreditGRPOConfig
from .data import load_splits, prepare, report_bare_latex, report_unparsable
from .methods import METHODS
from .methods.base import nearest
from .rewards import accuracy, build_reward, judged, required_columns
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
    generated_dataset_size: int = field(
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
        metadata={"help": "Column of the problem's text; not needed where the dataset has a column `prompt`."},
    )
    answer_column: str | None = field(
        default=None,
        metadata={"help": "Column of the answer; the `accuracy` reward reads it as `solution`."},
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
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions: `accuracy` (math-verify), `judged` (the judge of `trl-credit eval`), "
            "`reasoning_accuracy`, `think_format`, `cosine_scaled`, `repetition_penalty`, "
            "`soft_overlong_punishment`, or a dotted path; with arguments as a mapping "
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

    def __post_init__(self):
        if isinstance(self.reward_funcs, (str, dict)):  # a recipe with one reward
            self.reward_funcs = [self.reward_funcs]
        if self.generated_dataset_size < 1:
            raise ValueError(f"`generated_dataset_size` must be at least 1, got {self.generated_dataset_size}.")
        for name in ("generated_dataset_config", "eval", "compare"):
            setattr(self, name, mapping_of(name, getattr(self, name)))


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
    known = {f.name for kind in types for f in fields(kind) if f.init} | {"config", "env"}

    def check(name: str, where: str) -> None:
        if name not in known:
            for method in METHODS.values():
                if name in {f.name for f in fields(method)}:
                    example = json.dumps({"method": method.name, name: "..."})
                    raise ValueError(f"`{name}` is a parameter of a credit method: write --credit '{example}'.")
            hint = nearest(name, known).partition(" Known:")[0]  # hundreds of names would hide the message
            raise ValueError(f"Unknown field `{name}` {where}. {hint if hint.startswith('Did') else 'See --help.'}")

    if not argv:
        raise ValueError("Nothing to do: give --config FILE.yaml, or the fields themselves (see --help).")
    if argv[-1] == "--config":
        raise ValueError(f"`--config` needs the path of a {file}.")
    for text in parser.parse_known_args(argv)[1]:
        if text.startswith("--"):
            check(text.removeprefix("--").partition("=")[0].replace("-", "_"), "on the command line")
    try:
        if "--config" in argv[:-1]:
            recipe = yaml.safe_load(Path(argv[argv.index("--config") + 1]).read_text())
            if not isinstance(recipe, dict):
                raise ValueError(f"`--config`: the {file} must be a YAML mapping of fields to values.")
            for name in recipe:
                check(name, f"in the {file}")
        return parser.parse_args_and_config(argv)
    except OSError as error:
        raise ValueError(f"`--config`: cannot read {error.filename!r}: {error.strerror} (from {Path.cwd()}).") from None
    except yaml.YAMLError as error:
        raise ValueError(f"`--config`: not valid YAML: {error}") from None


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
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"`model_name_or_path`: there is no folder {name!r} (looked from {Path.cwd()}).")
    return name


def check_settings(args: CreditGRPOConfig) -> None:
    """Raises `ValueError` for settings that would fail, or do nothing, only after the model is loaded."""
    for name, value, allowed in (
        ("loss_type", args.loss_type, (*RATIO_GRADIENT_LOSSES, "cispo", "vespo")),
        ("importance_sampling_level", args.importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}`: unknown value {value!r}. {nearest(value, allowed)}")
    for name, valid, rule in (
        ("max_steps", lambda x: x == -1 or x >= 1, "at least 1, or -1 for whole epochs"),
        ("max_completion_length", lambda x: x >= 1, "at least 1"),
        ("num_iterations", lambda x: x >= 1, "at least 1"),
        ("temperature", lambda x: x > 0, "positive"),
        ("learning_rate", lambda x: x >= 0, "non-negative"),
        ("beta", lambda x: x >= 0, "non-negative"),
    ):
        value = getattr(args, name)
        if not isinstance(value, (int, float)) or not valid(value):
            raise ValueError(f"`{name}` must be {rule}, got {value!r}.")


def check_model(model: str, train_dataset, **kwargs) -> None:
    """Raises `ValueError` unless the model's configuration and tokenizer can be loaded (with the keyword arguments of
    `from_pretrained`) and fit the prompts."""
    try:
        AutoConfig.from_pretrained(model, **kwargs)
        processing_class = AutoProcessor.from_pretrained(model, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"`model_name_or_path`: {model!r} is neither a local folder with a model and its tokenizer nor one that the "
            f"hub gives: {reason}"
        ) from error
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
            others = load_splits(script_args.eval_dataset_name, seed=training_args.seed + 1, **generated)
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
    columns = {
        name: getattr(script_args, name)
        for name in ("problem_column", "answer_column", "system_prompt", "prompt_template", "plain_prompts")
    }
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
    for reward in (accuracy, judged):
        if reward in functions:
            report_unparsable(train_dataset, reward)
    if accuracy in functions:
        report_bare_latex(train_dataset)
    models = [script_args.reward_model_name_or_path] if script_args.reward_model_name_or_path else []
    return models + functions


def trainer_arguments(script_args, training_args, model_args, dataset_args) -> dict[str, Any]:
    """What the trainer is constructed with; no model is loaded yet.

    Raises:
        ValueError: Settings, data or rewards that cannot work.
    """
    check_settings(training_args)
    model = resolve_model(model_args.model_name_or_path)
    train_dataset, eval_dataset = build_datasets(script_args, training_args, dataset_args)
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
    }


def main(argv: list[str] | None = None) -> CreditGRPOTrainer:
    """Trains, saves and (if asked) pushes a recipe; returns the trainer. What is wrong with the recipe or its data is
    said in one line, with exit status 2, before a model is loaded wherever that can be known."""
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
        checkpoint_to_resume(training_args.resume_from_checkpoint, training_args.output_dir)
        trainer = CreditGRPOTrainer(**arguments)
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
