"""Several methods as one.

    A_i,t = guard(A_i prod_j w_j,t + sum_k a_k,t)

Weights and factors multiply; if all have mean 1, so does their product after one last scaling. Terms add. A method with
advantages of its own takes the place of A. With `guard: true`, tokens whose advantage would have the other sign than A
get 0.

A mix may hold `advantage`, a number or schedule l that multiplies A: l A + sum_k a_k. That is the mix of GRPO and
distillation that TRL's issue 7291 asks for.

The result does not depend on the order of the list.
"""

import functools
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..signals.base import Signal
from .base import CreditMethod, Paper
from .inputs import CreditInputs
from .ops import effective_token_fraction, mean_one
from .rollout import Continuations, Rollout
from .schedule import check_schedule, ever_nonzero, value_at
from .spec import EMPTY_LIST, NESTED_LIST, part_of_list


def inputs_of(method: CreditMethod, inputs: CreditInputs, place: int = 0) -> CreditInputs:
    """The inputs of one of several methods: the signals that it requests and the results of its rollout stage. Completions
    for which its signals were not computed are off its mask."""
    prefix = f"{place}/"
    wanted = method.signals()
    own = replace(
        inputs,
        signals={signal: inputs.signals[signal] for signal in wanted},
        computed={signal: rows for signal, rows in inputs.computed.items() if signal in wanted},
        rollout={name.removeprefix(prefix): value for name, value in inputs.rollout.items() if name.startswith(prefix)},
    )
    return replace(own, mask=own.complete, computed={}) if own.computed else own


def weights_of(method: CreditMethod, seen: CreditInputs, inputs: CreditInputs) -> Float[Tensor, "batch tokens"] | None:
    """The weights of one of several methods, of whose inputs it sees `seen` ([`inputs_of`]): 1 in completions for which its
    signals were not computed, as there is no advantage to weight."""
    weights = method.weights(seen)
    if weights is None or seen.mask is inputs.mask:
        return weights
    return torch.where(inputs.mask & ~seen.mask, 1.0, weights)


def rollout_stages(methods: "list[CreditMethod]", rollout: Rollout) -> dict[str, Tensor]:
    """The results of several methods' rollout stages, each method's under its place in the list."""
    return {
        f"{place}/{name}": value
        for place, method in enumerate(methods)
        if method.has_rollout_stage
        for name, value in method.rollout_stage(rollout).items()
    }


def shared_rows(methods: "list[CreditMethod]", rollout: Rollout) -> Bool[Tensor, " batch"] | None:
    """The completions of which any of several methods' rollout stages reads what it needs of the policy; `None` for all."""
    found = [method.rollout_rows(rollout) for method in methods if method.rollout_needs]
    if not found or any(rows is None for rows in found):
        return None
    return functools.reduce(torch.logical_or, found)


def shared_signals(methods: "list[CreditMethod]") -> tuple[Signal, ...]:
    """The signals of several methods, equal ones once."""
    return tuple(dict.fromkeys(signal for method in methods for signal in method.signals()))


def shared_continuations(methods: "list[CreditMethod]") -> tuple[Continuations, ...]:
    """The continuations that several methods ask for, equal ones once."""
    return tuple(dict.fromkeys(request for method in methods for request in method.continuations()))


def _built_part(place: int, part: Any) -> CreditMethod:
    """A part of a list. Errors say which one it is."""
    from .registry import build_credit

    with part_of_list(place):
        return build_credit(part)


def _own(
    part: CreditMethod, advantages: Float[Tensor, " batch"], inputs: CreditInputs
) -> Float[Tensor, "batch tokens"]:
    """The advantages of a method that has its own."""
    found = part.token_advantages(advantages, None, inputs)
    return found.unsqueeze(1).expand_as(inputs.mask) if found.dim() == 1 else found


@dataclass(frozen=True)
class Mix(CreditMethod):
    """Several methods as one: weights multiply, terms add. In a recipe, `credit` may be just the list.

    Args:
        parts: The methods, as names, mappings or objects.
        advantage: Multiplies the sequence advantage in front of the terms: a number, or a schedule such as `{from: 0.0, to:
            1.0, updates: 100}`.
        guard: Whether tokens whose advantage would have the other sign than their completion's get 0.
    """

    parts: list
    advantage: float | dict | list = 1.0
    guard: bool = False

    name = "mix"
    paper = Paper(
        title="trl-credit",
        id="",
        citation="",
    )

    def validate(self) -> None:
        if not self.parts:
            raise ValueError(EMPTY_LIST)
        object.__setattr__(self, "parts", [_built_part(place, part).to_dict() for place, part in enumerate(self.parts)])
        check_schedule(self.advantage, self.name, "advantage")
        self._check_parts()
        labels = self.labels  # refuses a method that is listed twice
        terms = [label for label, part in labels.items() if part.has_term]
        if not terms and self.advantage != 1.0:
            raise ValueError(
                f"credit method 'mix': `advantage` ({self.advantage!r}) weighs the advantage against terms, and none of "
                f"{', '.join(labels)} adds one: it would only scale the loss. Leave it out."
            )
        idle = [label for label, part in labels.items() if not part.has_term]
        if idle and not ever_nonzero(self.advantage):
            raise ValueError(
                f"credit method 'mix': with `advantage` ({self.advantage!r}) nothing is left of the advantage for "
                f"{', '.join(idle)} to credit, and only the terms count. Leave {'it' if len(idle) == 1 else 'them'} out."
            )
        if self.guard and not terms:
            raise ValueError(
                f"credit method 'mix': `guard` has no effect, because none of {', '.join(labels)} can change an "
                "advantage's sign. Leave it out."
            )
        if self.guard and self.own_advantages:
            raise ValueError(
                "credit method 'mix': `guard` keeps the sign of the sequence advantage, which "
                f"{self._owner.name!r} replaces. Leave out one of them."
            )

    def _check_parts(self) -> None:
        names = [part.name for part in self._built]
        for part in self._built:
            if reason := NESTED_LIST if isinstance(part, Mix) else part.on_its_own:
                raise ValueError(f"credit method {part.name!r} cannot be part of a list: {reason}.")
            if not part.credits_tokens:
                raise ValueError(
                    f"credit method {part.name!r} changes nothing in the list {names}. Leave it out. (A class of your own "
                    "whose `token_advantages` replaces the advantage sets `own_advantages = True`.)"
                )
        owners = [part.name for part in self._built if part.own_advantages]
        if len(owners) > 1:
            raise ValueError(
                f"credit methods {' and '.join(map(repr, owners))} each replace the sequence advantage, "
                "sign included. Keep one."
            )
        readers = [part.name for part in self._built if part.reads_sign]
        if owners and readers:
            raise ValueError(
                f"credit method {readers[0]!r} goes by the sign of the sequence advantage, and {owners[0]!r} "
                "gives each token its own. Keep one."
            )

    @functools.cached_property
    def _built(self) -> list[CreditMethod]:
        from .registry import build_credit

        return [build_credit(part) for part in self.parts]

    @functools.cached_property
    def labels(self) -> dict[str, CreditMethod]:
        """The parts by label: the name, plus the parameters that differ if several share it."""
        from .compose import labelled

        return labelled(self._built)

    @functools.cached_property
    def metric_names(self) -> list[str]:
        """The parts' names in metrics: the method's name, and from the second part with it on `NAME_2`, `NAME_3`, by their
        places in the list."""
        names: list[str] = []
        for part in self._built:
            name = re.sub(r"[^\w.-]+", "_", part.name)
            others = (f"{name}_{number}" for number in itertools.count(2))
            names.append(name if name not in names else next(other for other in others if other not in names))
        return names

    @functools.cached_property
    def _in_order(self) -> list[tuple[int, CreditMethod]]:
        """The parts and their places in the list, in an order that does not depend on it."""
        return sorted(enumerate(self._built), key=lambda pair: json.dumps(pair[1].to_dict(), sort_keys=True))

    @property
    def _owner(self) -> CreditMethod | None:
        return next((part for part in self._built if part.own_advantages), None)

    # What the parts are, taken together

    @property
    def reweights(self) -> bool:
        return any(part.reweights for part in self._built)

    @property
    def mean_one(self) -> bool:
        return all(part.mean_one for part in self._built if part.reweights)

    @property
    def own_advantages(self) -> bool:
        return self._owner is not None

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(kind for kind in CreditMethod.policies if all(kind in part.policies for part in self._built))

    @property
    def reads_sign(self) -> bool:
        return any(part.reads_sign for part in self._built)

    @property
    def needs_old_policy(self) -> bool:
        return all(part.needs_old_policy for part in self._built)

    @property
    def min_generations(self) -> int:
        return max(part.min_generations for part in self._built)

    @property
    def min_prompts(self) -> int:
        return max(part.min_prompts for part in self._built)

    @property
    def reads_batch(self) -> bool:
        return any(part.reads_batch for part in self._built)

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(need for part in self._built for need in part.rollout_needs))

    @property
    def has_rollout_stage(self) -> bool:
        return any(part.has_rollout_stage for part in self._built)

    @property
    def has_term(self) -> bool:
        return any(part.has_term for part in self._built)

    @property
    def credits_zero_advantage(self) -> bool:
        return any(part.credits_zero_advantage for part in self._built)

    def components(self) -> Mapping[str, CreditMethod]:
        return {f"{name}/": part for name, part in zip(self.metric_names, self._built, strict=True)}

    def signals(self) -> tuple[Signal, ...]:
        return shared_signals(self._built)

    def signals_without_advantage(self) -> tuple[Signal, ...]:
        if self._owner is not None and self._owner.credits_zero_advantage:  # weights multiply its advantages
            return self.signals()
        return tuple(dict.fromkeys(signal for part in self._built for signal in part.signals_without_advantage()))

    def continuations(self) -> tuple[Continuations, ...]:
        return shared_continuations(self._built)

    def rollout_rows(self, rollout: Rollout) -> Bool[Tensor, " batch"] | None:
        return shared_rows(self._built, rollout)

    def rollout_stage(self, rollout: Rollout) -> dict[str, Tensor]:
        return rollout_stages(self._built, rollout)

    def rows_with_credit(self, rollout: Rollout) -> Bool[Tensor, " batch"] | None:
        return None if self._owner is None else self._owner.rows_with_credit(rollout)

    # What a part makes of a micro-batch, once for the token advantages and the metrics

    @functools.cached_property
    def _keys(self) -> list[str]:
        """Of each part, by what it is and its place."""
        return [f"{place}/{json.dumps(part, sort_keys=True)}" for place, part in enumerate(self.parts)]

    def _seen_by(self, place: int, inputs: CreditInputs) -> CreditInputs:
        return inputs.once(("inputs", self._keys[place]), lambda: inputs_of(self._built[place], inputs, place))

    def _weights_of(self, place: int, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        seen = self._seen_by(place, inputs)
        return inputs.once(("weights", self._keys[place]), lambda: weights_of(self._built[place], seen, inputs))

    def _term_of(self, place: int, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        seen = self._seen_by(place, inputs)
        return inputs.once(("term", self._keys[place]), lambda: self._built[place].checked_term(seen))

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"] | None:
        found = [self._weights_of(place, inputs) for place, part in self._in_order if part.reweights]
        if not found:
            return None
        product = functools.reduce(torch.mul, found)
        return mean_one(product, inputs.mask) if len(found) > 1 and self.mean_one else product

    def token_advantages(
        self,
        advantages: Float[Tensor, " batch"],
        weights: Float[Tensor, "batch tokens"] | None,
        inputs: CreditInputs,
    ) -> Float[Tensor, "batch tokens"]:
        result = self._combined(advantages, weights, inputs)
        return torch.where(self._guarded(result, advantages), 0.0, result) if self.guard else result

    @staticmethod
    def _guarded(
        combined: Float[Tensor, "batch tokens"], advantages: Float[Tensor, " batch"]
    ) -> Bool[Tensor, "batch tokens"]:
        """(B, T) bool, tokens that `guard` sets to 0."""
        return combined * advantages.unsqueeze(1) < 0

    def _combined(
        self,
        advantages: Float[Tensor, " batch"],
        weights: Float[Tensor, "batch tokens"] | None,
        inputs: CreditInputs,
    ) -> Float[Tensor, "batch tokens"]:
        """(B, T) token advantages before `guard`."""
        scale = value_at(self.advantage, inputs.step)
        result = (advantages if scale == 1 else advantages * scale).unsqueeze(1)
        for place, part in self._in_order:
            if part.own_advantages:
                result = _own(part, advantages, self._seen_by(place, inputs)) * scale
        if weights is not None:
            result = result * weights.to(advantages.dtype)
        for place, part in self._in_order:
            if part.has_term:
                result = result + self._term_of(place, inputs).to(advantages.dtype)
        return torch.where(inputs.mask, result, 0.0)

    def is_uniform(self, metrics: Mapping[str, float]) -> None:
        """Never: each part is watched by itself ([`components`])."""
        return

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """Each part's own metrics as `<part>/<name>` ([`metric_names`]), and `<part>/effective_fraction` of its weights or
        `<part>/advantage_change`, the mean size of its term; NaN in completions for which its signals were not computed.
        `guarded_tokens`: share of tokens that `guard` set to 0. `advantage`, if it is a schedule."""
        values = self.scheduled(inputs, "advantage")
        if self.guard and inputs.advantages is not None:
            combined = self._combined(inputs.advantages, self.weights(inputs), inputs)
            values["guarded_tokens"] = self._guarded(combined, inputs.advantages).to(combined.dtype)
        for place, (name, part) in enumerate(zip(self.metric_names, self._built, strict=True)):
            seen = self._seen_by(place, inputs)
            found = {}
            if part.reweights:
                fraction = effective_token_fraction(self._weights_of(place, inputs), inputs.mask)
                found["effective_fraction"] = fraction.unsqueeze(-1).expand_as(seen.mask)
            elif part.has_term:
                found["advantage_change"] = self._term_of(place, inputs).abs()
            elif inputs.advantages is not None:
                changed = _own(part, inputs.advantages, seen) - inputs.advantages.unsqueeze(1)
                found["advantage_change"] = changed.abs()
            found |= part.metrics(seen)
            if seen.mask is not inputs.mask:
                found = {key: torch.where(seen.mask, value, torch.nan) for key, value in found.items()}
            values |= {f"{name}/{key}": value for key, value in found.items()}
        return values

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.name, "parts": self.parts, "advantage": self.advantage, "guard": self.guard}
