"""The interface of backends: they turn requests into generations, one at a time as they finish."""

import abc
import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from annotated_types import Ge

from ..._util.settings import AtLeast1, NonNegative, Positive, PositiveShare, Rule, Share, Whole, check_fields


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled. Every field is passed to the backend: none is left to a model's own defaults.

    Args:
        temperature: Softmax temperature; 0 is greedy decoding.
        top_p: Nucleus: the smallest set of tokens with at least this probability; 1 is all.
        top_k: Only the k likeliest tokens; 0 is all.
        min_p: Only tokens with at least this share of the likeliest one's probability; 0 is all.
        repetition_penalty: Divides the scores of tokens that were seen; 1 is none.
        max_tokens: Most tokens of a completion, the end of sequence included.
        stop: Texts that end a completion, and are not part of it.

    Raises:
        ValueError: A value is out of its range.
    """

    temperature: NonNegative
    top_p: PositiveShare = 1.0
    top_k: Annotated[Whole, Ge(0), Rule("at least 0 (0 is all tokens)")] = 0
    min_p: Share = 0.0
    repetition_penalty: Positive = 1.0
    max_tokens: AtLeast1 = 20_480
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        check_fields(self)
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise ValueError(f"`stop` must be a list of texts that are not empty, got {list(self.stop)!r}.")

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "stop": list(self.stop)}


@dataclass(frozen=True)
class Request:
    """One completion to make.

    Args:
        task: Name of the task.
        problem: Number of the problem in its task, from 0.
        index: Number of the sample of this problem, from 0 to n - 1.
        seed: The sample's own seed, a function of the run's seed and the three fields above, below 2**31.
        prompt: Plain text, or chat messages (`role`, `content`).
    """

    task: str
    problem: int
    index: int
    seed: int
    prompt: str | tuple[dict[str, str], ...]

    @property
    def key(self) -> tuple[str, int, int]:
        return self.task, self.problem, self.index


@dataclass(frozen=True)
class Generation:
    """One completion.

    Args:
        text: Its text, without the prompt, special tokens and the stop text. Thinking is in it, in its tags.
        tokens: Number of sampled tokens; None where a server does not tell.
        finish: `stop` (end of sequence, or a stop text) or `length` (cut at the most tokens).
    """

    text: str
    tokens: int | None
    finish: Literal["stop", "length"]


Emit = Callable[[Request, Generation], None]


class BackendError(Exception):
    """The backend cannot go on; its message says what to do. What was emitted before is kept."""


def process_state() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started; also where there are only CPUs."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # One process may be done hours before the others
    return PartialState(cpu=cpu, timeout=datetime.timedelta(days=30))


class Backend(abc.ABC):
    """A way to generate. `evaluate` calls `identity` and `prepare`, then `generate` once, and closes it."""

    name: str

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that decides the samples beside the sampling settings (the model's fingerprint, dtype), as JSON values.
        A run that is continued must have the same. Loads no weights."""

    def prepare(self, requests: Sequence[Request], sampling: SamplingSettings) -> SamplingSettings:
        """Checks all requests of a run, also those that are finished already, before weights are loaded; returns the
        settings as they can be (`max_tokens` cut to the model's context).

        Raises:
            BackendError, ValueError: A prompt cannot be completed.
        """
        return sampling

    @abc.abstractmethod
    def generate(self, requests: Sequence[Request], sampling: SamplingSettings, emit: Emit) -> None:
        """Makes every request's generation and hands it to `emit` as soon as it is finished, in any order, always from
        the thread that called `generate`.

        Raises:
            BackendError: It cannot go on.
        """

    def notes(self) -> list[str]:
        """Notes for the reader of the results, such as settings that did not reach the model."""
        return []

    def close(self) -> None:  # noqa: B027 (nothing to free is a valid answer)
        """Frees the model or the connections."""
