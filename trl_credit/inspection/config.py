"""Settings of `trl-credit inspect`."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge

from .._util.settings import DTYPES, AtLeast1, NonNegativeInt, Positive, Seed, Specs, Whole, check_fields, one_of
from .._util.values import mapping_of
from ..fields import check_match
from ..methods import CreditMethod
from ..methods.compose import labelled
from ..methods.registry import build_credit, standalone_methods
from ..recipe.recipe import Recipe
from ..trainer.exactness import check_generations, check_policy


# Fields taken from the recipe if not set here: ScoringConfig's name, then the recipe's
_FROM_RECIPE = {
    "model": "model_name_or_path",
    **{
        name: name
        for name in (
            "dataset_name",
            "dataset_train_split",
            "generated_dataset_config",
            "problem_column",
            "answer_column",
            "answer_match",
            "system_prompt",
            "prompt_template",
            "plain_prompts",
            "reward_funcs",
            "reward_weights",
            "temperature",
            "max_completion_length",
            "chat_template_kwargs",
            "dtype",
            "trust_remote_code",
        )
    },
}


@dataclass
class ScoringConfig:
    """
    Settings of commands that score sampled completions: model, data, rewards and methods.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "Folder or hub id of a model or LoRA adapter; `trl_credit:quickstart` is the embedded one."},
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "A training recipe: its model, data, rewards, credit method, temperature and lengths."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Data to take prompts from, as in a recipe: a file, a hub id, `reasoning_gym:TASK`."},
    )
    dataset_train_split: str | None = field(default=None, metadata={"help": "Its split; by default `train`."})
    generated_dataset_config: dict | str | None = field(
        default=None, metadata={"help": "Arguments of a generated task, such as {num_terms: 5}."}
    )
    problem_column: str | None = field(
        default=None, metadata={"help": "Field of the problem, text or a conversation; within mappings a dotted path."}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Field of the answer, such as `reward_model.ground_truth`."}
    )
    answer_match: str | None = field(
        default=None, metadata={"help": "Where the answer is a list of several: `any` of them is right, or `all`."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message before every problem."})
    prompt_template: str | None = field(default=None, metadata={"help": "Text around every problem, with `{problem}`."})
    plain_prompts: bool | None = field(default=None, metadata={"help": "Plain text instead of chat messages."})
    reward_funcs: Specs | None = field(default=None, metadata={"help": "Reward functions, as in a recipe."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Their weights."})
    num_prompts: AtLeast1 = field(default=8, metadata={"help": "Prompts to take from the data."})
    num_generations: Annotated[Whole, Ge(2)] = field(
        default=4, metadata={"help": "Completions to generate for each prompt."}
    )
    max_completion_length: AtLeast1 | None = field(
        default=None, metadata={"help": "Tokens to generate at most; by default 256."}
    )
    temperature: Positive | None = field(
        default=None, metadata={"help": "Temperature of generation and of every log-prob; by default 1."}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of the chat template, such as {enable_thinking: false}."}
    )
    methods: Specs | None = field(
        default=None,
        metadata={
            "help": "Credit methods: names, mappings, paths. By default the recipe's beside `uniform`, else all "
            "that need nothing but prompt and completion."
        },
    )
    reference: str | None = field(
        default=None,
        metadata={
            "help": "The model that training started from, for methods that compare with a reference and do not name it. "
            "By default an adapter's base model, else `--model` itself, from which it does not differ."
        },
    )
    dtype: one_of(*DTYPES) | None = field(
        default=None, metadata={"help": "Dtype of the model; by default float32 on a CPU, else bfloat16."}
    )
    trust_remote_code: bool | None = field(default=None, metadata={"help": "Run code that comes with the model."})
    seed: Seed = field(default=0, metadata={"help": "Seed of generation and of generated tasks."})

    def read(self, command: str) -> None:
        """Checks the fields and fills in those of the recipe.

        Raises:
            ValueError: A value is out of range, or the recipe cannot be read.
        """
        check_match(self.answer_match)
        for name in ("generated_dataset_config", "chat_template_kwargs"):
            setattr(self, name, mapping_of(name, getattr(self, name)))
        check_fields(self)
        self._credit: Any = None
        if self.recipe is not None:
            self._read_recipe(command)
            check_fields(self)

    def _read_recipe(self, command: str) -> None:
        try:
            values = Recipe.read(["--config", self.recipe], command).fields()
        except ValueError as error:
            raise ValueError(str(error).replace("`--config`", "`recipe`", 1)) from error
        if values["trainer"] != "grpo":
            raise ValueError(
                f"`recipe`: {self.recipe!r} trains images (`trainer: {values['trainer']}`), and this shows text. Set "
                "`credit_log_steps` in the recipe, which writes pages of the images in training."
            )
        for name, theirs in _FROM_RECIPE.items():
            if getattr(self, name) is None:
                setattr(self, name, values.get(theirs))
        self._credit = values["credit"]

    def credit_methods(self) -> dict[str, CreditMethod]:
        """The methods by label, with the reference filled in.

        Raises:
            ValueError: Unknown method or parameter, or a method given twice.
        """
        if self.methods is None:
            if self._credit is not None:
                chosen = list({"uniform": "uniform", build_credit(self._credit).name: self._credit}.values())
            else:
                chosen = standalone_methods()
        else:
            chosen = self.methods
        built = [self._with_reference(build_credit(method)) for method in chosen]
        for method in built:
            check_policy(method, "tokens")
            if not self.completions:
                check_generations(method, self.num_generations)
        return labelled(built)

    def _with_reference(self, method: CreditMethod) -> CreditMethod:
        mapping = method.to_dict()
        if self.reference is None or mapping.get("reference", "") is not None:
            return method
        return build_credit(mapping | {"reference": self.reference})


@dataclass
class InspectConfig(ScoringConfig):
    """
    Settings of `trl-credit inspect`. Fields that are not set are taken from the `recipe`, if there is one.
    """

    completions: str | None = field(
        default=None,
        metadata={
            "help": "Completions to show: a JSONL or parquet file with `prompt` and `completion` (such as TRL's "
            "`completions_00010.parquet`), token credit written by this command or by a training run (shown as it is "
            "without `--model`), or the folder of a training run or of `trl-credit eval`."
        },
    )
    prompts: list[str] | None = field(default=None, metadata={"help": "Prompts to generate completions for."})
    max_completions: AtLeast1 = field(default=200, metadata={"help": "Completions to show at most, the first ones."})
    output_dir: str = field(
        default="outputs/inspect", metadata={"help": "Folder for credit.html, credit.parquet and credit.json."}
    )
    show: NonNegativeInt = field(default=2, metadata={"help": "Completions to print; 0 for none."})

    def __post_init__(self):
        self.read("trl-credit inspect")
        given = [name for name in ("completions", "prompts", "dataset_name") if getattr(self, name)]
        if len(given) > 1 and self.recipe is not None and "dataset_name" in given:
            given.remove("dataset_name")  # it comes from the recipe: what is given here takes precedence
            self.dataset_name = None
        if len(given) != 1:
            raise ValueError(
                "Say what to show: one of `completions`, `prompts`, `dataset_name` (or a `recipe` with one), got "
                f"{' and '.join(f'`{name}`' for name in given) or 'none'}."
            )
        if self.model is None and not self.completions:
            raise ValueError("`model` is not set: name the model to generate with.")
        if self.reward_funcs and self.completions:
            if self.recipe is None:
                raise ValueError("`reward_funcs` has no effect with `completions`, whose rewards are in the file.")
            self.reward_funcs = None
        self.credit_methods()
