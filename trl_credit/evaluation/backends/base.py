"""Interface of the backends, which turn requests into generations and hand over each one as it finishes."""

import abc
import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from annotated_types import Ge

from ..._util.settings import AtLeast1, NonNegative, Positive, PositiveShare, Rule, Share, Whole, check_fields


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled. Backends get every field, so that none falls back to the model's own defaults.

    Args:
        temperature: Softmax temperature; 0 is greedy decoding.
        top_p: Nucleus sampling: the smallest set of tokens with at least this probability. 1 keeps all.
        top_k: Only the k likeliest tokens. 0 keeps all.
        min_p: Only tokens with at least this share of the likeliest token's probability. 0 keeps all.
        repetition_penalty: Divides the scores of tokens that already occurred. 1 is none.
        max_tokens: Token limit of a completion, including the end of sequence.
        stop: Texts that end a completion. They are not part of it.

    Raises:
        ValueError: A value is out of range.
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
    """One completion to generate.

    Args:
        task: Name of the task.
        problem: Number of the problem in its task, from 0.
        index: Number of the sample of this problem, from 0 to n - 1.
        seed: The sample's own seed, a function of the run's seed and the three fields above, below 2**31.
        prompt: Plain text, chat messages (`role`, `content`), or the token ids themselves.
        max_tokens: Token limit of this completion, if it is below the sampling settings'.
    """

    task: str
    problem: int
    index: int
    seed: int
    prompt: str | tuple[dict[str, str], ...] | tuple[int, ...]
    max_tokens: int | None = None

    @property
    def has_token_ids(self) -> bool:
        """Whether the prompt is token ids."""
        return not isinstance(self.prompt, str) and isinstance(self.prompt[0], int)

    @property
    def key(self) -> tuple[str, int, int]:
        return self.task, self.problem, self.index


@dataclass(frozen=True)
class Generation:
    """One completion.

    Args:
        text: The completion without the prompt, special tokens and stop text. Thinking is included, in its tags.
        tokens: Number of sampled tokens. `None` if a server does not report it.
        finish: `stop` (end of sequence or a stop text) or `length` (token limit reached).
        ids: The sampled token ids, with the end of sequence. `None` if a server does not report them.
    """

    text: str
    tokens: int | None
    finish: Literal["stop", "length"]
    ids: tuple[int, ...] | None = field(default=None, compare=False, repr=False)


Emit = Callable[[Request, Generation], None]


class BackendError(Exception):
    """The backend cannot continue. The message says what to do. Generations emitted before are kept."""


def process_state() -> PartialState:
    """State of this process among those started by `accelerate launch` or `torchrun`, also on CPU-only machines."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # One process may finish hours before the others
    return PartialState(cpu=cpu, timeout=datetime.timedelta(days=30))


class Backend(abc.ABC):
    """A way to generate. `evaluate` calls `identity` and `prepare`, then `generate` once, then `close`."""

    name: str

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything besides the sampling settings that determines the samples (model fingerprint, dtype), as JSON
        values. A continued run must match it. Loads no weights."""

    def upgraded(self, identity: dict[str, Any]) -> dict[str, Any]:
        """An identity that an earlier release wrote, as `identity` would have written it."""
        return identity

    def prepare(self, requests: Sequence[Request], sampling: SamplingSettings) -> SamplingSettings:
        """Checks all requests of a run, even those already done, before weights are loaded. Returns the settings to use
        (`max_tokens` cut to the model's context).

        Raises:
            BackendError, ValueError: A prompt leaves no room for a completion, or cannot be rendered.
        """
        return sampling

    @abc.abstractmethod
    def generate(self, requests: Sequence[Request], sampling: SamplingSettings, emit: Emit) -> None:
        """Generates a completion for every request. Passes each to `emit` as soon as it finishes, in any order, always
        from the thread that called `generate`.

        Raises:
            BackendError: The backend cannot continue.
        """

    def notes(self) -> list[str]:
        """Notes for whoever reads the results, such as settings that did not reach the model."""
        return []

    def close(self) -> None:  # noqa: B027 (nothing to free is a valid answer)
        """Frees the model or closes the connections."""
