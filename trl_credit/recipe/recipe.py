"""Turns a recipe's fields into the trainer's arguments."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, NamedTuple

from datasets import IterableDataset
from peft import PeftConfig
from transformers.integrations.integration_utils import get_available_reporting_integrations
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    get_peft_config,
    get_quantization_config,
)

from .._trl import get_callable_name
from .._util.arguments import field_types, parse_arguments
from .._util.imports import load_dotted
from .._util.settings import AtLeast1, Fields, Specs, Unchecked, check_fields, check_output_dir, one_of
from .._util.text import nearest
from .._util.values import mapping_of
from .._util.words import with_file_named
from ..data import cached_apart, check_solutions, load_splits, prepare, report_bare_latex, report_unparsable
from ..evaluation.config import EvalConfig
from ..extras.effect import check_rows
from ..extras.reward_guard import distinct_names
from ..fields import ANSWER_MATCHES
from ..model_files import LocalModel, base_of_adapter, check_model, resolve_model
from ..rewards import TEXT_REWARDS, accuracy, build_reward, judged, judges_images, required_columns
from ..samplers.pipelines import check_pipeline
from ..trainer.config import CreditGRPOConfig
from ..trainer.table import TRAINERS, config_class, trainer_class
from .adapters import check_adapter, refuse_earlier_adapter
from .early import refuse_empty_credit, words_of
from .evaluation import TrainingEvaluation
from .mixture import check_mixture, load_mixture
from .names import parameter_hint


@dataclass
class CreditScriptArguments(ScriptArguments):
    """
    Arguments of the training script, besides the trainer's, the model's and the dataset mixture's.

    `seed` (a trainer argument) seeds everything: sampling, data order, splits and generated tasks.
    """

    trainer: one_of(*TRAINERS) = field(
        default="grpo",
        metadata={
            "help": "`grpo` trains a language model, `diffusion` a diffusers pipeline, `image_tokens` Janus. It decides "
            "which fields a recipe may have."
        },
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Dataset to evaluate on, if it is not `dataset_name`."},
    )
    generated_dataset_size: AtLeast1 = field(
        default=1000,
        metadata={"help": "Rows of a generated dataset (`reasoning_gym:TASK`, `trl_credit:arithmetic`)."},
    )
    generated_dataset_config: dict | str | None = field(
        default=None,
        metadata={"help": "Arguments of a generated dataset's task; on the command line as text, JSON or YAML."},
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
            "help": "Field of the problem, text or a conversation (within mappings a dotted path); not needed if the "
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
        metadata={"help": "If the answer is a list of several: `any` of them is right, or `all` must be given."},
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
            "`{name: ..., argument: ...}` (text on the command line, JSON or YAML)."
        },
    )
    eval: Annotated[dict | str | None, Fields(EvalConfig)] = field(
        default=None,
        metadata={
            "help": "Evaluate at the end with the trainer's generation engine: a mapping of the fields of `trl-credit eval` "
            "(such as tasks, n, preset), with `every: N` also every N updates; on the command line as text, JSON or YAML."
        },
    )
    compare: Annotated[dict | str | None, Unchecked] = field(
        default=None,
        metadata={"help": "Methods and seeds for `trl-credit compare`; training ignores them and uses `credit`."},
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
            setattr(self, name, mapping_of(name, getattr(self, name), EvalConfig if name == "eval" else None))
        check_fields(self, lenient=True)


class Recipe(NamedTuple):
    """A recipe: every field of a training run.

    Args:
        script (`CreditScriptArguments`): Data, rewards and evaluation.
        training (`CreditGRPOConfig`): The trainer.
        model (`ModelConfig`): The model, LoRA and quantization.
        mixture (`DatasetMixtureConfig`): TRL's mixture of datasets.
    """

    script: CreditScriptArguments
    training: CreditGRPOConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig

    @classmethod
    def read(cls, argv: list[str], prog: str = "trl-credit train", description: str | None = None) -> "Recipe":
        """Reads `--config FILE.yaml`, or the file alone in first place, and command-line fields.

        Args:
            argv: Command-line words.
            prog: Name of the command in messages.
            description: The command's description in `--help`.

        Raises:
            ValueError: The file cannot be read, or a field is out of range or unknown (the message names the nearest).
        """
        argv = with_file_named(argv)
        words = words_of(argv)
        refuse_empty_credit(words)
        check_mixture(words.get("datasets"))
        return cls(*parse_arguments(argv, recipe_classes(argv), prog, description, "recipe", hint=parameter_hint))

    @property
    def trainer(self) -> type:
        """The trainer that it names."""
        return trainer_class(self.script.trainer)

    def fields(self) -> dict[str, Any]:
        """Every field and its value."""
        return {f.name: getattr(part, f.name) for part in self for f in fields(part) if f.init}

    def peft_config(self, adapter: str | None = None) -> PeftConfig | None:
        """The settings of the adapter that is trained, if any: a new one, or the one at a path that training continues."""
        if adapter is not None:
            return PeftConfig.from_pretrained(adapter, revision=self.model.model_revision)
        return get_peft_config(self.model)

    def trainer_arguments(self) -> dict[str, Any]:
        """The trainer's arguments; loads no model yet. See [`trainer_arguments`]."""
        return trainer_arguments(*self)

    def prepare(self) -> tuple[dict[str, Any], TrainingEvaluation | None]:
        """The trainer's arguments and the evaluation, checked as far as possible without loading a model.

        Raises:
            ValueError: Settings, data, rewards or a model that cannot work.
        """
        arguments = self.trainer_arguments()
        evaluation = None
        if self.script.trainer in ("diffusion", "image_tokens"):
            if self.script.trainer == "diffusion":
                check_pipeline(arguments["model"])
            else:
                from ..image_tokens import check_architecture

                code = self.training.trust_remote_code
                check_architecture(LocalModel.find(arguments["model"], self.model.model_revision, code).config())
            if self.script.eval is not None:
                raise ValueError("`eval` asks for answers to problems, which an image model does not give. Remove it.")
            return arguments, None
        if self.script.eval is not None:
            evaluation = TrainingEvaluation.from_recipe(self.script.eval, self.script, self.training)
        check_model(
            arguments["model"],
            arguments["train_dataset"],
            revision=self.model.model_revision,
            trust_remote_code=self.training.trust_remote_code,
        )
        return arguments, evaluation


RECIPE_TYPES = (CreditScriptArguments, CreditGRPOConfig, ModelConfig, DatasetMixtureConfig)


def recipe_classes(argv: list[str]) -> tuple[type, ...]:
    """The dataclasses of a recipe's fields, which depend on the trainer that a command line or its recipe names.

    Raises:
        ValueError: There is no such trainer.
    """
    name = words_of(argv).get("trainer") or "grpo"
    if isinstance(name, Mapping):  # another project's section, which is refused with what to write instead
        name = "grpo"
    if name not in TRAINERS:
        raise ValueError(f"`trainer`: there is no trainer {name!r}. {nearest(str(name), TRAINERS)}")
    return tuple(config_class(name) if kind is CreditGRPOConfig else kind for kind in RECIPE_TYPES)


def recipe_types() -> dict[str, Any]:
    """The types of a recipe's fields, with their ranges."""
    return field_types(RECIPE_TYPES)


def build_datasets(script_args, training_args, dataset_args) -> tuple:
    """The training dataset and the evaluation dataset (or `None`), with the columns that TRL and the rewards read."""
    generated = {
        "generated_size": script_args.generated_dataset_size,
        "generated_config": script_args.generated_dataset_config,
    }
    texts = [getattr(script_args, name) for name in ("problem_column", "answer_column")]
    texts += [getattr(script_args, f"eval_{name}") for name in ("problem_column", "answer_column")] + ["prompt"]
    if dataset_args.datasets:
        if script_args.dataset_name:
            raise ValueError("Both `datasets` and `dataset_name` are set: set one of the two.")
        splits = load_mixture(dataset_args, training_args.seed)
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
            with cached_apart(train):
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
    _check_rows(prepared, train, training_args)
    if evaluation is None:
        return prepared, None
    for name in ("problem_column", "answer_column"):
        columns[name] = getattr(script_args, f"eval_{name}") or columns[name]
    return prepared, prepare(evaluation, **columns)


def _check_rows(prepared, given, training_args) -> None:
    """[`check_rows`], which tells how many rows were left out."""
    try:
        check_rows(prepared, training_args)
    except ValueError as error:
        if len(prepared) == len(given):
            raise
        raise ValueError(
            f"{error} {len(given) - len(prepared)} of {len(given)} rows were left out, because their problem or answer is "
            "empty: see `problem_column` and `answer_column`."
        ) from None


def build_rewards(script_args, training_args, train_dataset) -> list:
    """The reward model's name, if any, and the reward functions, checked against the dataset's columns."""
    functions = [build_reward(spec, training_args.max_completion_length) for spec in script_args.reward_funcs or []]
    if not functions and not script_args.reward_model_name_or_path:
        raise ValueError("No reward: set `reward_funcs` or `reward_model_name_or_path`.")
    makes_images = script_args.trainer != "grpo"
    names = train_dataset.column_names or [*next(iter(train_dataset), {})]  # unknown of a stream that was mapped
    if makes_images:
        _check_image_rewards(script_args)
    for function in functions:
        if judges_images(function) and not makes_images:
            raise ValueError(
                f"`reward_funcs`: {function.__name__!r} judges images, but this run makes text. Set `trainer: diffusion` "
                "or use a reward for text."
            )
        bound = function.keywords if isinstance(function, functools.partial) else {}
        if taken := sorted(set(bound) & set(names)):
            raise ValueError(
                f"`reward_funcs`: {get_callable_name(function)!r} has the argument {taken[0]!r}, and the data a column of "
                "that name, which TRL would pass in its place. Rename the column, or remove it."
            )
        for column in required_columns(function):
            if column == "images" and makes_images:
                continue
            if column not in names and script_args.rollout_func is None:  # which may add it
                hint = " (set `answer_column`)" if column == "solution" else ""
                raise ValueError(
                    f"`reward_funcs`: {get_callable_name(function)!r} needs a dataset column "
                    f"{column!r}{hint}. {nearest(column, names)}"
                )
    if script_args.answer_column is None:
        check_solutions(train_dataset, functions)
    for function in functions:
        if getattr(function, "func", function) in (accuracy, judged):  # a partial if it has arguments
            report_unparsable(train_dataset, function)
    if accuracy in functions:
        report_bare_latex(train_dataset)
    models = [script_args.reward_model_name_or_path] if script_args.reward_model_name_or_path else []
    if not models:
        _check_best_metric(training_args.metric_for_best_model, functions)
    return models + functions


def _check_best_metric(metric: str | None, functions: Sequence[Callable]) -> None:
    """Raises `ValueError` for a `metric_for_best_model` of a reward function that there is not, which transformers would
    miss at the first evaluation."""
    found = re.fullmatch(r"(?:eval_)?rewards/(.+)/(?:mean|std)", metric or "")
    names = [get_callable_name(function) for function in functions]
    if found is not None and found[1] not in distinct_names(names):
        raise ValueError(
            f"`metric_for_best_model` is {metric!r}, but no reward function is logged as {found[1]!r}. "
            f"{nearest(found[1], names)}"
        )


def _check_image_rewards(script_args) -> None:
    """Raises `ValueError` for a reward that scores text, in a run that makes images."""
    if script_args.reward_model_name_or_path:
        raise ValueError(
            "`reward_model_name_or_path`: a reward model scores text, and this run makes images. Remove it."
        )
    for spec in script_args.reward_funcs or []:
        name = spec.get("name") if isinstance(spec, Mapping) else spec
        if name in TEXT_REWARDS:
            raise ValueError(
                f"`reward_funcs`: {name!r} scores text, and this run makes images (`trainer: {script_args.trainer}`). Use a "
                "reward for images, such as clip_score, or your own function."
            )


def trainer_arguments(script_args, training_args, model_args, dataset_args) -> dict[str, Any]:
    """Builds the trainer's arguments; loads no model yet.

    Raises:
        ValueError: Settings, data or rewards that cannot work.
    """
    if training_args.max_completion_length is None:
        raise ValueError("`max_completion_length` must be at least 1, got None.")
    check_output_dir(training_args.output_dir)
    check_trackers(training_args.report_to)
    if training_args.sync_ref_model and training_args.beta != 0 and model_args.use_peft:
        raise ValueError(
            "`sync_ref_model` has nothing to update with `use_peft`: TRL's reference is the model without its adapter. "
            "Remove one of the two."
        )
    model = resolve_model(model_args.model_name_or_path)
    if base_of_adapter(model, model_args.model_revision) is not None:
        check_adapter(model, model_args)
    elif not model_args.use_peft:
        refuse_earlier_adapter(training_args.output_dir)
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
        "rollout_func": load_rollout(script_args.rollout_func),
    }


def check_trackers(names: list[str]) -> None:
    """Raises `ValueError` for a tracker of `report_to` whose package is not installed."""
    for name in names:
        if name not in ("all", "none", *get_available_reporting_integrations()):
            raise ValueError(f"`report_to`: {name!r} is not installed. Install it, or set `report_to: none`.")


def load_rollout(path: str | None) -> Callable | None:
    """Loads the rollout function at a path.

    Raises:
        ValueError: There is no function at the path.
    """
    if path is None:
        return None
    try:
        function = load_dotted(path)
    except ImportError as error:
        raise ValueError(f"`rollout_func`: cannot load {path!r}: {error}") from error
    if not callable(function):
        raise ValueError(f"`rollout_func`: {path!r} is not a function, but {type(function).__name__}.")
    return function
