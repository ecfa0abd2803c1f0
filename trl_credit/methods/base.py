"""Base class of credit methods: parameters, required signals, and a pure function from (B, T) tensors to weights."""

import math
import re
import typing
from abc import ABC
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._util.imports import dotted_path
from .._util.moved import moved_names
from ..signals.base import Signal
from .inputs import CreditInputs
from .ops import UNIFORM_FRACTION
from .rollout import Continuations, Rollout
from .schedule import is_schedule, value_at
from .spec import check_parameters, converted


__getattr__ = moved_names(__name__)


@dataclass(frozen=True)
class Paper:
    """The paper that defines a method: title, arXiv id and BibTeX entry. Id and entry are empty if there is none."""

    title: str
    id: str
    citation: str

    @property
    def is_on_arxiv(self) -> bool:
        return re.fullmatch(r"\d{4}\.\d{5}", self.id) is not None


@dataclass(frozen=True)
class CreditMethod(ABC):
    """Base of all credit methods. Subclasses are frozen dataclasses whose fields are the method's parameters.

    The advantage of token t is `A * w_t + a_t`. A method is of one of four kinds:

    | kind | it has | the token advantage | class attributes |
    |---|---|---|---|
    | weights | [`weights`] of mean 1 over each completion | `A * w_t` | |
    | factors | [`weights`] >= 0 of any mean | `A * w_t` | `mean_one = False` |
    | a term | [`term`] | `A + a_t` | `reweights = False` |
    | its own | [`token_advantages`] | what it returns | `reweights = False`, `own_advantages = True` |

    What the kind switches off, in one place:

    - A ratio of the whole sequence (`importance_sampling_level: sequence`) is refused for every kind, because its
      gradient sums over the completion ([`credits_tokens`]).
    - Completions with zero advantage are skipped with weights and factors, which leave zero at zero. A term gives
      them an advantage, so none is skipped ([`credits_zero_advantage`]). A method with a rollout stage may name the
      completions itself ([`rows_with_credit`]). In a list with a term, weights are for the others only, and so are
      their signals ([`signals_without_advantage`]).
    - Weights and factors multiply in a list of methods, terms add, and at most one method has advantages of its own
      ([`~trl_credit.methods.mix.Mix`]).

    Class attributes:
        name: The name in recipes and on the command line.
        paper: Citation, for `trl-credit methods` and the model card.
        differences: Differences from the paper or its official code, one sentence each, in order.
        reweights: True if [`weights`] is what the method does, with mean 1 unless `mean_one` is False.
        mean_one: False if the weights are >= 0 but have another mean; metrics then do not take it for 1.
        own_advantages: True if [`token_advantages`] replaces the sequence advantage, sign included.
        reads_sign: True if the rule depends on the sign of the sequence advantage, so that a method with advantages of
            its own cannot go before it.
        needs_old_policy: True if the method has no effect on-policy, where old and live policy are one.
        needs_turns: True if it credits turns, so that a run without tools, environment or rollout function is refused.
        min_generations: The fewest completions of a prompt with which the method can do anything. A run with fewer is
            refused.
        min_prompts: The fewest prompts of a generation batch with which the method can do anything. A run with fewer is
            refused.
        reads_batch: True if the weights depend on which completions share a micro-batch. Then rows are neither
            regrouped nor left out.
        watches_length: True if the method is known to shorten completions; the run then warns if they shrink.
        on_its_own: The reason the method cannot be part of a list; empty if it can.
        when_uniform, then_equals: What a warning says of a run in which the method had no effect ([`is_uniform`]), and what
            such a run is.
        policies: Kinds of policy for which it makes sense, see [`Signal`].
        rollout_needs: What the rollout stage reads of the policy that generated: `"logps"`, `"sum_squared_probs"`,
            `"hidden_states"`. Any of them costs one forward per generation batch, of the completions that it reads
            ([`rollout_rows`]).
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    differences: ClassVar[tuple[str, ...]] = ()
    reweights: ClassVar[bool] = True
    mean_one: ClassVar[bool] = True
    own_advantages: ClassVar[bool] = False
    reads_sign: ClassVar[bool] = False
    needs_old_policy: ClassVar[bool] = False
    needs_turns: ClassVar[bool] = False
    min_generations: ClassVar[int] = 2
    min_prompts: ClassVar[int] = 1
    reads_batch: ClassVar[bool] = False
    watches_length: ClassVar[bool] = False
    on_its_own: ClassVar[str] = ""
    when_uniform: ClassVar[str] = "weights were effectively uniform"
    then_equals: ClassVar[str] = "plain GRPO"
    policies: ClassVar[tuple[str, ...]] = ("tokens", "steps")
    rollout_needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in fields(self):
            before = getattr(self, field.name)
            value = converted(self.name, field.name, before, hints[field.name])
            if value is not before:
                object.__setattr__(self, field.name, value)
        self.validate()

    def validate(self) -> None:  # noqa: B027 (most methods have nothing to check)
        """Raises `ValueError` if a parameter is out of range. Types are already checked."""

    def require(self, condition: bool, field: str, rule: str) -> None:
        if not condition:
            raise ValueError(f"credit method {self.name!r}: `{field}` must be {rule}, got {getattr(self, field)!r}.")

    def signals(self) -> tuple[Signal, ...]:
        """Signals the trainer must compute, besides the policy's own log-probs and entropy."""
        return ()

    # At rollout time, on whole groups

    def continuations(self) -> tuple[Continuations, ...]:
        """Continuations that the rollout stage must have: [`Rollout.values`] has the answers. They are the dearest thing
        to ask for, each a generation."""
        return ()

    def rollout_rows(self, rollout: Rollout) -> Bool[Tensor, " batch"] | None:
        """(B,) bool, the completions of which the rollout stage reads what it needs of the policy ([`rollout_needs`]), which
        is not there yet; `None` for all. Those without a token in the loss are never read."""
        return None

    def rollout_stage(self, rollout: Rollout) -> Mapping[str, Float[Tensor, "batch tokens"]]:
        """Computes what needs all completions of a generation batch, once, before they are dealt to updates.

        Returns:
            (B, T) float tensors by name, for this process's completions. The update reads them as
            [`CreditInputs.rollout`].
        """
        return {}

    def rows_with_credit(self, rollout: Rollout) -> Bool[Tensor, " batch"] | None:
        """(B,) bool, the completions that get token advantages; `None` if those are the ones with an advantage."""
        return None

    @property
    def has_rollout_stage(self) -> bool:
        return type(self).rollout_stage is not CreditMethod.rollout_stage

    # At each update, on a micro-batch

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"] | None:
        """Returns (B, T) float weights: >= 0, 0 off the mask, mean 1 over each completion's mask, no gradient.

        A completion's weights may depend only on its own inputs, because the trainer chooses which rows share a
        micro-batch.
        """
        return None

    def term(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"] | None:
        """Returns the (B, T) float term that is added to the sequence advantage, 0 off the mask, without gradient."""
        return None

    @property
    def has_term(self) -> bool:
        return type(self).term is not CreditMethod.term

    def token_advantages(
        self,
        advantages: Float[Tensor, " batch"],
        weights: Float[Tensor, "batch tokens"] | None,
        inputs: CreditInputs,
    ) -> Float[Tensor, "batch tokens"] | Float[Tensor, " batch"]:
        """Turns the (B,) sequence advantages into the (B, T) or (B,) advantages that TRL's loss uses."""
        if self.has_term:
            return torch.where(
                inputs.mask, advantages.unsqueeze(1) + self.checked_term(inputs).to(advantages.dtype), 0.0
            )
        if weights is None:
            raise ValueError(f"credit method {self.name!r} defines none of `weights`, `term` and `token_advantages`.")
        return advantages.unsqueeze(1) * weights.to(advantages.dtype)

    def checked_term(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        """[`term`]. Raises `ValueError` if it is not (B, T)."""
        term, shape = self.term(inputs), tuple(inputs.mask.shape)
        if tuple(term.shape) != shape:
            raise ValueError(
                f"credit method {self.name!r}: `term` must return a {shape} tensor, got {tuple(term.shape)}."
            )
        return term

    @property
    def credits_tokens(self) -> bool:
        """True if tokens of a completion can get different advantages, which a ratio of the whole sequence cancels."""
        return self.reweights or self.has_term or self.own_advantages

    @property
    def shapes_ratio(self) -> bool:
        """True if the weights enter through [`ratio_logps`]. The loss must then clip a ratio."""
        return False

    def ratio_logps(
        self,
        logps: Float[Tensor, "batch tokens"],
        old_logps: Float[Tensor, "batch tokens"],
        weights: Float[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch tokens"]:
        """Returns the (B, T) log-probs from which the loss makes its ratio to `old_logps`. Called if [`shapes_ratio`].

        Args:
            logps: (B, T) the live policy's log-probs, with gradient.
            old_logps: (B, T) those of the policy that generated; `logps` without gradient if it is the live one.
            weights: (B, T) the method's weights; 1 in rows that need no credit.
        """
        return logps

    @property
    def credits_zero_advantage(self) -> bool:
        """True if completions with zero advantage can still get token advantages and so must not be skipped. A method
        that names its completions ([`rows_with_credit`]) returns False."""
        if type(self).rows_with_credit is not CreditMethod.rows_with_credit:
            return False
        return not self.reweights or type(self).token_advantages is not CreditMethod.token_advantages

    def signals_without_advantage(self) -> tuple[Signal, ...]:
        """Of [`signals`], those that matter in completions with zero advantage. Where the others are not computed, the
        method's credit must not depend on them."""
        return self.signals() if self.credits_zero_advantage or self.reads_batch else ()

    def components(self) -> "Mapping[str, CreditMethod]":
        """The methods that this one is made of, by the prefix of their metrics; itself, unless it is a list."""
        return {"": self}

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """(B, T) tensors to log as `credit/<name>`, each averaged over the finite entries on the mask."""
        return {}

    def scheduled(self, inputs: CreditInputs, *names: str) -> dict[str, torch.Tensor]:
        """[`metrics`] of the parameters that are schedules: their values at this update. None of plain numbers."""
        return {
            name: torch.full_like(inputs.policy_logps, value_at(getattr(self, name), inputs.step))
            for name in names
            if is_schedule(getattr(self, name))
        }

    def is_uniform(self, metrics: Mapping[str, float]) -> bool | None:
        """True if the weights were effectively uniform, which defeats the method's purpose.

        Args:
            metrics: Averages over some completions: `credit/effective_fraction` or, without weights,
                `credit/advantage_change`, and [`metrics`] as `credit/<name>`.

        Returns:
            `None` if unknown, because no completion needed credit.
        """
        fraction = metrics.get("credit/effective_fraction", math.nan)
        if not math.isnan(fraction):
            return fraction > UNIFORM_FRACTION
        change = metrics.get("credit/advantage_change", math.nan)
        return None if math.isnan(change) else change < 1 - UNIFORM_FRACTION

    def remedy(self, inputs: CreditInputs) -> str:
        """Advice for when the weights are effectively uniform on `inputs`, phrased to end a sentence."""
        return f"`trl-credit methods {self.to_dict()['method']}` shows its parameters."

    def to_dict(self) -> dict[str, Any]:
        """The mapping from which `build_credit` rebuilds this method: every parameter, and the method's name (a dotted
        path if the class is not registered)."""
        from .registry import METHODS

        cls = type(self)
        name = self.name if METHODS.get(self.name) is cls else dotted_path(cls)
        return {"method": name, **{field.name: getattr(self, field.name) for field in fields(self)}}

    @classmethod
    def from_mapping(cls, parameters: Mapping[str, Any]) -> "CreditMethod":
        """Builds the method from a mapping of its parameters. Unknown or missing keys raise `ValueError`."""
        known = {field.name: field for field in fields(cls)}
        required = [k for k, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
        check_parameters(cls.name, parameters, known, required)
        return cls(**parameters)
