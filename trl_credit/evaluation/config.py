"""Settings of an evaluation and their defaults."""

# ruff: noqa: RUF009 (`_option` makes a field)
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from .._util.arguments import field_types, read_fields
from .._util.moved import moved_names
from .._util.settings import (
    AtLeast1,
    Fields,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveShare,
    Share,
    Unchecked,
    Whole,
    check_fields,
    checked,
    one_of,
)
from .._util.values import mapping_of, parsed
from ..fields import ANSWER_MATCHES
from ..rewards.patterns import answer_regex
from .backends.base import SamplingSettings
from .presets import PRESETS


__getattr__ = moved_names(__name__)


BACKENDS = ("auto", "transformers", "vllm", "server")


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class EvalConfig:
    """
    What `trl-credit eval` does. Fields that are not set take their value from the preset (see `preset`).
    """

    model: str | None = _option(
        None,
        "Model to evaluate: a folder, a hub id, a LoRA adapter (evaluated on its base model without merging), "
        "`trl_credit:quickstart`, or with a server the name it serves.",
    )
    recipe: str | None = _option(
        None,
        "Training recipe that fills in unset fields: its prompts (over the preset's), its `eval` mapping, and as model "
        "its `output_dir`.",
    )
    tasks: list[str] = field(
        default_factory=lambda: ["aime24", "aime25"],
        metadata={
            "help": "Tasks: `aime24`, `aime25`, `math500`, `amc23`, `gsm8k` (from the hub), `NAME=FILE_OR_HUB_ID` (the same "
            "from a file or another dataset, or your own under a name), a JSONL, JSON, parquet or CSV file, a hub id, "
            "`reasoning_gym:TASK`, `trl_credit:arithmetic`."
        },
    )
    n: AtLeast1 = _option(32, "Samples per problem. Published AIME results have 32.")
    output_dir: str | None = _option(
        None,
        "Output folder; the same command continues an interrupted run. By default outputs/eval/MODEL.",
    )
    preset: one_of(*PRESETS) = _option("default", f"Published settings: {', '.join(f'`{name}`' for name in PRESETS)}.")
    temperature: NonNegative | None = _option(None, "Softmax temperature; 0 is greedy. Default 1.0 (DAPO).")
    top_p: PositiveShare | None = _option(None, "Nucleus sampling. Default 0.7 (DAPO).")
    top_k: NonNegativeInt | None = _option(None, "Only the k likeliest tokens; 0 is all. Default 0.")
    min_p: Share | None = _option(None, "Drop tokens below this fraction of the top token's probability. Default 0.")
    repetition_penalty: Positive | None = _option(None, "Repetition penalty; 1 disables it. Default 1.")
    max_tokens: AtLeast1 | None = _option(
        None, "Token limit per completion, capped by the model's context. Default 20,480 (DAPO)."
    )
    stop: list[str] | None = _option(None, "Texts that end a completion.")
    system_prompt: str | None = _option(None, "System message; an empty text is none.")
    prompt_template: str | None = _option(
        None, "Text around every problem, with the slot `{problem}`. Default: asks for \\boxed{} (Qwen2.5-Math)."
    )
    chat_template_kwargs: dict | str | None = _option(
        None,
        "Arguments of the chat template, such as {enable_thinking: false}; on the command line as text, JSON or YAML.",
    )
    plain_prompts: bool | None = _option(
        None, "Plain text instead of chat messages, for base models and models without a chat template."
    )
    seed: Whole = _option(0, "Each sample's own seed is derived from this, its task, problem and index.")
    limit: AtLeast1 | None = _option(None, "Only the first problems of each task.")
    problem_column: str | None = _option(
        None,
        "Field of the problem, of your own data: text or a conversation; within mappings a dotted path. Default: problem or "
        "question.",
    )
    answer_column: str | None = _option(
        None, "Field of the answer, of your own data, such as reward_model.ground_truth. Default: answer."
    )
    answer_match: one_of(*ANSWER_MATCHES) | None = _option(
        None, "Where the answer is a list of several: `any` of them is right, or `all` must be given."
    )
    dataset_config: str | None = _option(None, "Configuration of your own hub dataset.")
    dataset_split: str | None = _option(None, "Split of your own data. Default: test, or the only one.")
    generated_dataset_size: AtLeast1 = _option(100, "Problems of a generated task.")
    generated_dataset_config: dict | str | None = _option(
        None, "Arguments of a generated task, such as {num_terms: 5}; on the command line as text, JSON or YAML."
    )
    generated_dataset_seed: Whole = _option(
        2**20, "Seed of a generated task; choose one that the training did not use."
    )
    answer_pattern: str | None = _option(
        None,
        "Where the answer is stated, instead of in \\boxed{} or after 'Answer:'; an option of the reward `judged`, too: "
        "`answer_tag` (<answer>72</answer>), `gsm8k` (#### 72), or a regular expression with one group, whose last match is "
        "the answer.",
    )
    backend: one_of(*BACKENDS) = _option(
        "auto",
        "`transformers`, `vllm` (in process), `server` (an OpenAI-compatible endpoint), or `auto`: the server where "
        "`base_url` is set, vLLM where it is installed and there is a GPU, else transformers.",
    )
    dtype: str = _option(
        "auto",
        "Weights' dtype (transformers, vllm); `auto` is the checkpoint's, float32 on a CPU with transformers, and what vLLM "
        "takes on a GPU.",
    )
    revision: str | None = _option(None, "Revision of a hub model.")
    trust_remote_code: bool = _option(False, "Run code that comes with the model.")
    attn_implementation: str | None = _option(None, "Attention of transformers.")
    batch_size: AtLeast1 = _option(32, "Completions at a time and process (transformers).")
    vllm_kwargs: dict | str | None = _option(
        None, "Arguments of vLLM's LLM, such as {tensor_parallel_size: 8}; on the command line as text, JSON or YAML."
    )
    base_url: list[str] | None = _option(
        None,
        "Address of the server, such as http://localhost:8000/v1, or of several servers of the same model. Key: "
        "OPENAI_API_KEY.",
    )
    concurrency: AtLeast1 = _option(64, "Requests at a time, at all addresses together (server).")
    max_retries: NonNegativeInt = _option(6, "Retries of a request, with growing pauses (server).")
    request_timeout: Positive = _option(3600.0, "Seconds until a request is given up (server).")
    extend: bool = _option(False, "Add samples per problem, or tasks, to a finished run.")
    report: bool = _option(True, "Write report.html.")

    def __post_init__(self):
        if isinstance(self.tasks, str):
            self.tasks = [self.tasks]
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        if isinstance(self.base_url, str):
            self.base_url = [self.base_url]
        for name in ("chat_template_kwargs", "generated_dataset_config", "vllm_kwargs"):
            setattr(self, name, mapping_of(name, getattr(self, name)))
        if self.recipe is not None:
            self._take(self.recipe)
        self.check()

    def _take(self, recipe: str) -> None:
        """Fills the fields that are not set from the recipe."""
        types = (_TrainingFields,)
        settings = read_fields(recipe, types, setting="recipe")
        ours = {f.name for f in fields(_TrainingFields)}
        settings = {name: value for name, value in settings.items() if name in ours}
        settings = checked(settings, field_types(types))
        if self.model is None:
            self.model = settings.get("output_dir")
        evaluation = mapping_of("eval", settings.get("eval"), EvalConfig) or {}
        for name, value in (prompts_of(settings) | evaluation).items():
            if name in {f.name for f in fields(self)} and getattr(self, name) == _default(name):
                setattr(self, name, value)

    def check(self) -> None:
        """Raises `ValueError` for a setting that cannot work."""
        check_fields(self)
        tasks = self.tasks if isinstance(self.tasks, list) else []
        if not tasks or any(not isinstance(task, str) or not task for task in tasks):
            raise ValueError(f"`tasks` must be a list of names, got {self.tasks!r}.")
        if self.prompt_template is not None and "{problem}" not in self.prompt_template:
            raise ValueError(f"`prompt_template` must contain the slot {{problem}}, got {self.prompt_template!r}.")
        if self.answer_pattern is not None:
            answer_regex(self.answer_pattern)  # for the ValueError
        if self.plain_prompts and (self.system_prompt or self.chat_template_kwargs):
            raise ValueError("`system_prompt` and `chat_template_kwargs` have no effect with `plain_prompts`.")
        if self.base_url == []:
            raise ValueError("`base_url` is an empty list: name a server, or leave it out.")
        if self.base_url and self.backend not in ("auto", "server"):
            raise ValueError(f"`base_url` has no effect with `backend: {self.backend}`: use `server`.")
        if self.backend == "server" and not self.base_url:
            raise ValueError("`backend: server` needs `base_url`, such as http://localhost:8000/v1.")
        self.sampling()

    def sampling(self) -> SamplingSettings:
        """The preset's sampling settings, overridden by the fields that are set.

        Raises:
            ValueError: A setting is out of range.
        """
        settings = PRESETS[self.preset].sampling.as_dict()
        for name in settings:
            if getattr(self, name) is not None:
                settings[name] = getattr(self, name)
        return SamplingSettings(**{**settings, "stop": tuple(settings["stop"])})

    def template_kwargs(self) -> dict[str, Any]:
        """Arguments of the chat template: the preset's, overridden by those that are set."""
        return {**PRESETS[self.preset].chat_template_kwargs, **(self.chat_template_kwargs or {})}

    def run_folder(self) -> Path:
        """Folder of the run."""
        if self.output_dir is not None:
            return Path(self.output_dir).expanduser()
        name = re.sub(r"[^\w.-]+", "-", str(self.model)).strip("-.") or "model"
        return Path("outputs/eval") / name


def _default(name: str) -> Any:
    (found,) = (f for f in fields(EvalConfig) if f.name == name)
    return found.default if found.default_factory is MISSING else found.default_factory()


@dataclass
class _TrainingFields:
    """Fields of a training recipe that name its model and shape its prompts."""

    output_dir: str | None = None
    problem_column: str | None = None
    system_prompt: str | None = None
    prompt_template: str | None = None
    plain_prompts: bool = False
    chat_template_kwargs: dict | str | None = None
    reward_funcs: Annotated[Any, Unchecked] = None
    eval: Annotated[dict | str | None, Fields(EvalConfig)] = None


def prompts_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluation fields that reproduce a training recipe's prompts: chat template arguments, the reward's
    `answer_pattern` and the prompts' text, unless the data has ready-made prompts (no `problem_column`)."""
    found = {
        "chat_template_kwargs": None if recipe.get("plain_prompts") else recipe.get("chat_template_kwargs"),
        "answer_pattern": pattern_of(recipe),
    }
    if recipe.get("problem_column"):
        found |= {
            "system_prompt": recipe.get("system_prompt") or "",
            "prompt_template": recipe.get("prompt_template") or "{problem}",
            "plain_prompts": recipe.get("plain_prompts") or None,
        }
    return {name: value for name, value in found.items() if value is not None}


def pattern_of(recipe: Mapping[str, Any]) -> str | None:
    """The `answer_pattern` of the recipe's `judged` reward, if it has one."""
    rewards = recipe.get("reward_funcs") or []
    for spec in rewards if isinstance(rewards, list) else [rewards]:
        if isinstance(spec, str) and spec.lstrip().startswith("{"):
            try:
                spec = parsed("reward_funcs", spec)
            except ValueError:
                continue  # building the reward reports it
        if isinstance(spec, Mapping) and spec.get("name") == "judged":
            return spec.get("answer_pattern")
    return None
