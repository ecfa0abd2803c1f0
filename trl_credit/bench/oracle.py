"""Perfect credit on written-out sums, a yardstick for methods: what each token did to the chance of being right.

    V(y_<t) = prod_s pi(rest_s | y_<t, rest_<s)         # over the canonical rest; 0 after a mistake
    A*_t = V(y_<=t) - V(y_<t)
    b_t = (1 - pi(rest_1 | y_<t)) V(y_<t, rest_1)       # 0 after a mistake
    B*_t = V(y_<=t) - b_t

Both have the same expected gradient: that of the expected reward. A*_t has the value as baseline. B*_t has the baseline with
the least variance if there are two tokens: the gradient of the rarer one is longer, by the odds of the other, so b_t swaps
their probabilities, and the gradient is the same whichever was sampled. Where the policy is nearly certain, a right token
gets nearly all of the value as advantage, and a wrong one hardly any blame.

pi is the policy that generated, at the rollout temperature. [`~trl_credit.values.bookkeeping`] knows where a completion
stops being able to be right and how it should have gone on. So one forward per generation batch, on each completion up to
its mistake and the right rest from there, gives the values of all its beginnings. The text that the styles `letters` and
`words` put in front of steps decides nothing: it is left out of the product, and its tokens get 0.

It is for sums: `trl_credit:arithmetic` with the reward `correct_answer`, or reasoning-gym's `basic_arithmetic` in plain
prompts with `accuracy`, if the model writes them as [`~trl_credit.toy.arithmetic`] says. A language model may also write
them in another way. Then V is too small; a right completion has TRL's advantage on all its tokens, and a wrong one is
blamed where it leaves the notation. In a recipe: `credit: trl_credit.bench.oracle.Oracle`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._util.tokens import token_pieces
from ..batching import COMPLETION_PREFIX, REWARDS, loss_mask
from ..methods.base import CreditMethod, Paper
from ..methods.inputs import CreditInputs
from ..methods.ops import at_least_float32, mean_one, where_finite
from ..signals.base import PolicyForward, Signal, SignalSource
from ..signals.context import PolicyContext
from ..signals.models import eval_mode
from ..values.bookkeeping import canonical_rest, first_mistake, problem_of


FORMS = ("additive", "least_variance", "reweight", "deciding")
_STYLE = re.compile(r"[a-z ]+")


@dataclass(frozen=True)
class Checked:
    """A completion, checked.

    Args:
        mistake: The token with which it stops being able to be right; `None` if there is none.
        rest: The text that would have completed it rightly from there; empty if it is complete.
        deciding: For each token and the end of sequence, whether it is the mistake or, in a right completion, a digit of a
            step's result.
        styled: Whether its style puts text in front of steps.
    """

    mistake: int | None
    rest: str
    deciding: list[bool]
    styled: bool


def checked(prompt: str, pieces: list[str], finished: bool) -> Checked:
    """Checks a completion of the arithmetic task.

    Args:
        prompt: Its prompt.
        pieces: The text of each token, without the end of sequence.
        finished: Whether it ended by itself. If it ended too early, the mistake is the token after the last.
    """
    text, ends = "".join(pieces), list(accumulate(map(len, pieces)))
    styled = problem_of(prompt).style in ("letters", "words")
    place = first_mistake(prompt, text, finished)
    if place is not None:
        mistake = next((token for token, end in enumerate(ends) if end > place), len(pieces))
        rest = canonical_rest(prompt, "".join(pieces[:mistake]))
        return Checked(mistake, rest, [token == mistake for token in range(len(pieces) + 1)], styled)
    results = [match.span() for match in re.finditer(r"(?<==)\d+|(?<== )\d+", text)]
    deciding = [
        any(start < end and end - len(piece) < stop for start, stop in results)
        for piece, end in zip(pieces, ends, strict=True)
    ]
    return Checked(None, canonical_rest(prompt, text), [*deciding, False], styled)


@dataclass(frozen=True)
class TrueAdvantages(Signal):
    """(B, T) float32 A*_t (see the module docstring). NaN in a completion whose reward bookkeeping does not foresee: errors
    that cancel each other.

    Args:
        least_variance: B*_t instead.
    """

    least_variance: bool = False

    title = "true advantage"

    def source(self) -> _TrueSource:
        return _TrueSource(self.least_variance)


@dataclass(frozen=True)
class DecidingTokens(Signal):
    """(B, T) float32, 1 on the first wrong token of a wrong completion and on the digits of a right one's step results."""

    title = "deciding token"

    def source(self) -> _DecidingSource:
        return _DecidingSource()


class _CheckedSource(SignalSource):
    key: str

    def rows(
        self, context: PolicyContext, prompts: list, batch: dict[str, Any]
    ) -> list[tuple[int, list[int], Checked]]:
        """Completions with a token in the loss: their row, their tokens without the end of sequence, and their check."""
        tokenizer, found = context.tokenizer, []
        for row, (ids, mask) in enumerate(zip(batch["completion_ids"], loss_mask(batch), strict=True)):
            own = ids[mask].tolist()
            if not own:
                continue
            if not isinstance(prompts[row], str) or problem_of(prompts[row]) is None:
                raise ValueError(
                    f"credit method 'oracle' knows the values of sums only, and {prompts[row]!r} is no prompt of one. Use "
                    "`dataset_name: trl_credit:arithmetic`, or the data of recipes/compare/headroom_smollm2.yaml."
                )
            finished = own[-1] == tokenizer.eos_token_id
            body = own[:-1] if finished else own
            found.append((row, body, checked(prompts[row], token_pieces(tokenizer, body), finished)))
        return found

    def put(self, batch: dict[str, Any], rows: Mapping[int, list[float]]) -> None:
        result = torch.zeros(batch["completion_ids"].shape)
        mask = loss_mask(batch).cpu()
        for row, values in rows.items():
            result[row, mask[row]] = torch.tensor(values[: int(mask[row].sum())])
        batch[self.key] = result.to(batch["completion_ids"].device)

    def compute(
        self, context: PolicyContext, batch: dict[str, Any], own: None, policy: PolicyForward
    ) -> Float[Tensor, "batch tokens"]:
        return batch[self.key].to(policy.logps.dtype)


class _DecidingSource(_CheckedSource):
    key = f"{COMPLETION_PREFIX}deciding"

    def extend_rollout(
        self, context: PolicyContext, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> None:
        rows = self.rows(context, prompts, batch)
        self.put(batch, {row: [float(decides) for decides in check.deciding] for row, _, check in rows})


class _TrueSource(_CheckedSource):
    needs_groups = True

    def __init__(self, least_variance: bool):
        self.least_variance = least_variance
        self.key = f"{COMPLETION_PREFIX}true_advantages" + ("_least_variance" if least_variance else "")

    def extend_rollout(
        self, context: PolicyContext, examples: list[dict], prompts: list, batch: dict[str, Any]
    ) -> None:
        tokenizer, rows = context.tokenizer, self.rows(context, prompts, batch)
        right: dict[int, list[int]] = {}
        for row, body, check in rows:
            rest = tokenizer(check.rest, add_special_tokens=False)["input_ids"] if check.rest else []
            right[row] = [*body[: check.mistake], *rest, tokenizer.eos_token_id]
        logps = self._logps(context, batch, right)
        found: dict[int, list[float]] = {}
        for row, body, check in rows:
            # A right completion may be cut where it is complete, before its end of sequence, but not sooner
            fits = len(right[row]) - 1 <= context.max_completion_length
            scored = logps[row, : min(len(right[row]), context.max_completion_length)].cpu().double()
            pieces = token_pieces(tokenizer, right[row])
            style = torch.tensor([check.styled and _STYLE.fullmatch(piece) is not None for piece in pieces])
            values = true_values(scored, style[: len(scored)], fits)
            of_right, of_wrong = token_values(values, style[: len(scored)], self.least_variance)
            if check.mistake is not None:
                of_right = torch.cat([of_right[: check.mistake], of_wrong[check.mistake : check.mistake + 1]])
            result = [*of_right.tolist(), *[0.0] * (len(body) + 1)]
            foreseen = float(check.mistake is None and not check.rest)
            if float(batch[REWARDS][row] > 0) != foreseen:
                result = [math.nan] * len(result)
            found[row] = result
        self.put(batch, found)

    @staticmethod
    def _logps(
        context: PolicyContext, batch: dict[str, Any], right: Mapping[int, list[int]]
    ) -> Float[Tensor, "rows right"]:
        """Log-probs of right completions after their prompts, as TRL computes them of the policy's own."""
        prompt_ids, prompt_mask = batch["prompt_ids"], batch["prompt_mask"]
        width = max((len(ids) for ids in right.values()), default=1)
        ids = torch.full((len(prompt_ids), width), context.tokenizer.pad_token_id, device=prompt_ids.device)
        mask = torch.zeros_like(ids)
        for row, own in right.items():
            ids[row, : len(own)] = torch.tensor(own)
            mask[row, : len(own)] = 1
        with torch.no_grad(), eval_mode(context.model):
            logps, _, _ = context.policy_logps_and_entropies(
                context.model,
                torch.cat([prompt_ids, ids], dim=1),
                torch.cat([prompt_mask, mask], dim=1),
                width,
                batch_size=context.args.per_device_train_batch_size,
            )
        return logps


def true_values(
    logps: Float[Tensor, " tokens"], style: Bool[Tensor, " tokens"], fits: bool = True
) -> Float[Tensor, " ends"]:
    """(T + 1,) values of a right completion's beginnings, from none of it to all.

    Args:
        logps: (T,) log-probs of its tokens.
        style: (T,) bool, the tokens that decide nothing.
        fits: Whether it fits in the length limit; if not, no beginning can become right.
    """
    counted = torch.where(style, 0.0, logps)
    values = torch.cat([counted.flip(0).cumsum(0).flip(0), logps.new_zeros(1)]).exp()
    return values if fits else torch.zeros_like(values)


def token_values(
    values: Float[Tensor, " ends"], style: Bool[Tensor, " tokens"], least_variance: bool = False
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """A*_t, or B*_t, of each token of a right completion, and of a wrong token in its place.

    Args:
        values: (T + 1,) of [`true_values`].
        style: (T,) bool, the tokens that decide nothing. They have 0; a wrong token there loses all, in either form.
        least_variance: B*_t, see the module docstring.
    """
    before, gain = values[:-1], values.diff()
    right, wrong = (before, -gain) if least_variance else (gain, -before)
    return torch.where(style, 0.0, right), torch.where(style, -before, wrong)


@dataclass(frozen=True)
class Oracle(CreditMethod):
    """Perfect credit on the arithmetic task, known by bookkeeping.

    Args:
        form: `additive`: the advantage is A*_t. `least_variance`: it is B*_t. `reweight`: TRL's advantage, on the tokens
            whose A*_t has its sign, in proportion to the size of A*_t. `deciding`: TRL's advantage, all on the first wrong
            token of a wrong completion and on the digits of a right one's step results.
    """

    form: str = "additive"

    name = "oracle"
    paper = Paper(
        title="CreditBench yardstick: perfect credit",
        id="",
        citation="",
    )
    policies = ("tokens",)

    def validate(self) -> None:
        self.require(self.form in FORMS, "form", f"one of {', '.join(FORMS)}")

    @property
    def reweights(self) -> bool:
        return not self.own_advantages

    @property
    def own_advantages(self) -> bool:
        return self.form in ("additive", "least_variance")

    @property
    def reads_sign(self) -> bool:
        return self.form == "reweight"

    @property
    def credits_zero_advantage(self) -> bool:
        return self.own_advantages

    def signals(self) -> tuple[Signal, ...]:
        return (DecidingTokens() if self.form == "deciding" else TrueAdvantages(self.form == "least_variance"),)

    def weights(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"] | None:
        if self.own_advantages:
            return None
        scores = at_least_float32(inputs.signals[self.signals()[0]])
        if self.form == "reweight":
            scores = (scores * inputs.advantages.unsqueeze(1).sign()).clamp(min=0.0)
        return mean_one(scores, inputs.mask)

    def token_advantages(
        self,
        advantages: Float[Tensor, " batch"],
        weights: Float[Tensor, "batch tokens"] | None,
        inputs: CreditInputs,
    ) -> Float[Tensor, "batch tokens"] | Float[Tensor, " batch"]:
        if not self.own_advantages:
            return super().token_advantages(advantages, weights, inputs)
        return where_finite(inputs.signals[self.signals()[0]], advantages, inputs.mask)

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """`true_advantage_size`: mean size of A*_t, or of B*_t."""
        if self.form == "deciding":
            return {}
        return {"true_advantage_size": inputs.signals[self.signals()[0]].abs()}
