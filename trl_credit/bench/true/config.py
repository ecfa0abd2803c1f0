"""Settings of `trl-credit bench --true`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from ..._util.files import RunFolderError
from ..._util.settings import AtLeast1, Positive, Rule, Specs, Whole, check_output_dir, one_of
from ..._util.values import mapping_of
from ...evaluation.config import BACKENDS
from ...inspection.config import ScoringConfig
from ...methods import CreditMethod
from ...methods.registry import build_credit
from ...toy.arithmetic import STYLES
from ...values.steps import check_every
from ...values.store import ValueFolder
from ..run import build_methods
from ..served import served_methods
from ..sweeps import with_reference


EMBEDDED = "trl_credit:quickstart"
_ARITHMETIC = "trl_credit:arithmetic"
_QUICK = {"num_prompts": 6, "num_generations": 4, "stderr": 0.2, "most": 16, "sketch": 2**12}
# Lists that are scored by default, beside the methods themselves
COMBINED = (["gcpo", "certainty"],)
# Settings of the samples, which `values` has already
_SAMPLED = (
    *("recipe", "dataset_name", "dataset_train_split", "generated_dataset_config", "problem_column", "answer_column"),
    *("answer_match", "system_prompt", "prompt_template", "plain_prompts", "reward_funcs", "reward_weights"),
    *("max_completion_length", "temperature", "chat_template_kwargs", "style", "num_prompts", "num_generations"),
    *("every", "least", "most", "stderr", "certain", "bookkeeping", "backend", "base_url", "served_model"),
    *("batch_size", "quick"),
)
# Settings that are stored beside the samples, for scoring them again
KEPT = ("model", "temperature", "chat_template_kwargs", "max_completion_length", "dtype", "trust_remote_code", "seed")


@dataclass
class TrueConfig(ScoringConfig):
    """
    Settings of `trl-credit bench --true`. Fields that are not set are taken from the `recipe`, if there is one; without
    model, recipe and data, the embedded model is scored on its sums.
    """

    methods: Specs | None = field(
        default=None,
        metadata={
            "help": "Credit methods: names, mappings, lists, paths. By default the recipe's, or without one every method "
            "that can be scored here, and [gcpo, certainty]. Controls are always there."
        },
    )
    num_prompts: AtLeast1 | None = field(
        default=None, metadata={"help": "Prompts to take from the data; by default 64, with `quick` 6."}
    )
    num_generations: Annotated[Whole, Ge(2)] | None = field(
        default=None, metadata={"help": "Completions of each prompt; by default 8, with `quick` 4."}
    )
    style: one_of(*STYLES) | None = field(
        default=None, metadata={"help": "Style of the embedded model's sums; by default `plain`."}
    )
    every: str = field(
        default="1",
        metadata={
            "help": "Where completions are valued: after so many tokens, at the ends of a `step` (line, sentence, `;`), or "
            "after the matches of a regular expression."
        },
    )
    stderr: Positive | None = field(
        default=None,
        metadata={
            "help": "Standard error of a value above which more continuations are drawn, in units of the reward; by default "
            "0.1, with `quick` 0.2."
        },
    )
    least: Annotated[Whole, Ge(2)] = field(
        default=8, metadata={"help": "Continuations of every prefix; an even number."}
    )
    most: Annotated[Whole, Ge(2)] | None = field(
        default=None, metadata={"help": "Continuations of a prefix at most; by default 64, with `quick` 16."}
    )
    certain: Annotated[float, Ge(0.5), Le(1.0), Rule("from 0.5 to 1")] = field(
        default=0.99,
        metadata={
            "help": "Prefixes that the policy leads to the next with at least this probability share its value: their true "
            "advantages are at most 1 - certain of the rewards' range. 1 for none."
        },
    )
    bookkeeping: one_of("exact", "mistakes", "none") = field(
        default="exact",
        metadata={
            "help": "On the arithmetic task: `exact` takes the policy's probability of the right rest, `mistakes` samples "
            "but values prefixes with a wrong step by 0, `none` samples all. No effect elsewhere."
        },
    )
    backend: one_of(*BACKENDS) = field(
        default="auto",
        metadata={
            "help": "`transformers`, `vllm` or `server`; `auto` takes the server of `base_url`, else vLLM on a GPU."
        },
    )
    base_url: list[str] | None = field(
        default=None,
        metadata={
            "help": "A server of the same weights, or several, that completes token ids and tells the sampled ones, as "
            "`vllm serve` does."
        },
    )
    served_model: str | None = field(default=None, metadata={"help": "The model's name there; by default `model`."})
    batch_size: AtLeast1 | None = field(
        default=None,
        metadata={"help": "Completions at once, with transformers; by default 32, 512 for the embedded model."},
    )
    gradients: bool = field(
        default=True,
        metadata={"help": "Compare the policy gradients, for which each prompt is sampled twice."},
    )
    batch: AtLeast1 = field(
        default=8,
        metadata={"help": "Groups in a batch: so many are credited together, and their gradient's cosine is told."},
    )
    sketch: AtLeast1 | None = field(
        default=None,
        metadata={"help": "Numbers that a gradient is sketched to, a power of two; by default 32768."},
    )
    values: str | None = field(
        default=None,
        metadata={
            "help": "Folder of an earlier run, whose completions and values are scored again, without sampling: with other "
            "`methods`, for example."
        },
    )
    quick: bool = field(
        default=False,
        metadata={"help": "Few prompts and continuations: seconds, and only noise."},
    )
    output_dir: str = field(
        default="outputs/bench-true",
        metadata={
            "help": "Folder for the samples, bench_true.json and bench_true.md. The same command continues there."
        },
    )

    def __post_init__(self):
        if isinstance(self.base_url, str):
            self.base_url = [self.base_url]
        check_output_dir(self.output_dir)
        check_every(self.every)
        if self.values is not None:
            self._read_values()
        if self.model is None and self.recipe is None and self.dataset_name is None:
            self._take_embedded()
        elif self.style is not None:
            raise ValueError("`style` is for the embedded model's own sums: leave it out, or `model` and the data.")
        given = {name: getattr(self, name) is not None for name in _QUICK}
        # Columns of the data
        self.columns: tuple[str, ...] = ()
        self.read("trl-credit bench --true")
        for name, quick in _QUICK.items():
            if not given[name]:
                setattr(self, name, quick if self.quick else _DEFAULTS[name])
        if self.batch_size is None:
            self.batch_size = 512 if self.model == EMBEDDED else 32
        if self.sketch & (self.sketch - 1) or self.sketch < 2:
            raise ValueError(f"`sketch` must be a power of two from 2, got {self.sketch}.")
        if self.least % 2:
            raise ValueError(f"`least` must be an even number, so that both halves are alike, got {self.least}.")
        if self.most < self.least:
            raise ValueError(f"`most` must be at least `least` ({self.least}), got {self.most}.")
        if self.base_url == []:
            raise ValueError("`base_url` is an empty list: name a server, or leave it out.")
        if self.base_url is None and self.served_model is not None:
            raise ValueError("`served_model` has no effect without `base_url`.")
        if self.base_url is not None and self.backend not in ("auto", "server"):
            raise ValueError(f"`base_url` has no effect with `backend: {self.backend}`.")
        if self.model is None:
            raise ValueError("`model` is not set: name the model whose credit is scored.")
        if self.values is None and self.dataset_name is None:
            raise ValueError("`dataset_name` is not set: name the data, or a `recipe` with some.")
        if self.values is None and not self.reward_funcs:
            raise ValueError("`reward_funcs` is not set: the true advantages are those of a reward.")
        self.max_completion_length = self.max_completion_length or 256
        self.temperature = 1.0 if self.temperature is None else self.temperature

    def _take_embedded(self) -> None:
        self.model, self.dataset_name = EMBEDDED, _ARITHMETIC
        self.generated_dataset_config = {
            "style": self.style or "plain",
            **(mapping_of("generated_dataset_config", self.generated_dataset_config) or {}),
        }
        self.reward_funcs = self.reward_funcs or ["trl_credit.toy.arithmetic.correct_answer"]
        self.max_completion_length = self.max_completion_length or (40 if self.style in (None, "plain") else 64)

    def _read_values(self) -> None:
        """Takes the settings of the samples from their folder."""
        unset = {name: spec.default for name, spec in self.__dataclass_fields__.items()}
        for name in _SAMPLED:
            if getattr(self, name) != unset[name]:
                raise ValueError(
                    f"`{name}` has no effect with `values`, whose samples there are already: leave it out."
                )
        try:
            about = ValueFolder(Path(self.values)).about()
        except RunFolderError as error:
            raise ValueError(f"`values`: {error}") from error
        for name in KEPT:
            if getattr(self, name) == unset[name]:
                setattr(self, name, about["settings"][name])

    def credit_methods(self) -> dict[str, CreditMethod]:
        """The methods by label, uniform and the other controls last.

        Raises:
            ValueError: Unknown method or parameter, or a method that cannot be scored here.
        """
        methods = build_methods([_mapping(method) for method in self._asked()])
        return {label: with_reference(method, self.reference) for label, method in methods.items()}

    def takes_every_method(self) -> bool:
        """True if every registered method that can be scored is."""
        return self.methods is None and self._credit is None

    def _asked(self) -> list:
        if self.methods is not None:
            return list(self.methods)
        return self._every_served() if self._credit is None else [self._credit]

    def _every_served(self) -> list:
        served = self.served[0]
        return [*served.values(), *(parts for parts in COMBINED if all(name in served for name in parts))]

    @property
    def served(self) -> tuple[dict, dict[str, str]]:
        """The registered methods that are scored by default, and the reasons of those left out: of those that read a column
        of the data, there are only the ones whose columns `columns` has."""
        served, left_out = served_methods(None)
        served, left_out = dict(served), dict(left_out)
        for name in list(served):
            needed = [c for signal in build_credit(served[name]).signals() for c in signal.source().columns]
            missing = [column for column in needed if column not in self.columns]
            if missing:
                del served[name]
                left_out[name] = f"reads the column {missing[0]!r}, which the data have not"
        return served, left_out


@dataclass
class AdviceConfig(TrueConfig):
    """
    Settings of `trl-credit advise`: those of `bench --true`, with values at the ends of steps, and every method that can be
    scored beside the recipe's own.
    """

    methods: Specs | None = field(
        default=None,
        metadata={
            "help": "Credit methods: names, mappings, lists, paths. By default the recipe's and every other that can be "
            "scored here, and [gcpo, certainty]. Controls are always there."
        },
    )
    every: str = field(default="step", metadata=TrueConfig.__dataclass_fields__["every"].metadata)
    output_dir: str = field(
        default="outputs/advise",
        metadata={"help": "Folder for the advice, the samples and the scores. The same command continues there."},
    )

    def takes_every_method(self) -> bool:
        return self.methods is None

    def _asked(self) -> list:
        if self.methods is not None or self._credit is None:
            return super()._asked()
        own = build_credit(self._credit)
        asked = [self._credit]
        for method in self._every_served():  # with the recipe's parameters instead of the defaults
            if isinstance(method, list):
                method = [self._credit if part == own.name else part for part in method]
            built = build_credit(method)
            if built != own and (isinstance(method, list) or built.name != own.name):
                asked.append(method)
        return asked


def _mapping(method: Any) -> Any:
    return build_credit(method).to_dict() if isinstance(method, list) else method


_DEFAULTS = {"num_prompts": 64, "num_generations": 8, "stderr": 0.1, "most": 64, "sketch": 2**15}
