"""VinePPO: a step is worth what it adds to the expected reward, estimated by continuing from before and after it.

    V(s_k) = mean_j R(y_<s_k + c_j),   j = 1 .. K       # c_j: continuations from the start of step k
    V(end) = R(y)                                       # after the last step: the completion's own reward
    A_t = V(s_k+1) - V(s_k)                             # every token t of step k

The continuations c_j are sampled from the policy that generated, with the rollout's sampling settings, for as many tokens
as the completion had left, and rewarded by the run's reward functions. They are not trained on. Completions with the same
beginning share its continuations; all of a group share those of the prompt.

A group whose rewards are all equal has credit, too: the step with which a solution that could have become right went wrong
gets a negative advantage whatever its siblings did. So such groups are continued and trained, unlike in GRPO.

Known weakness: the price. Each step costs K continuations, so a completion of S steps costs about K S / 2 further
completions. `credit/continuation_tokens` and `credit/continuation_seconds` show it. With rewards of 0 and 1 and K = 9, an
advantage's standard error is up to 0.24. Under vLLM and continuous batching, which take one limit for all that is sent
together, a continuation that does not end by itself may run up to twice as long as it may be, and is then cut.

Reference: VinePPO: Refining Credit Assignment in RL Training of LLMs (arXiv 2410.01679); official code
McGill-NLP/VinePPO.
Differences from paper and code are numbered in [`Vine.differences`].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..values.steps import check_every
from .base import Paper
from .inputs import CreditInputs
from .ops import at_least_float32
from .rollout import Continuations, Rollout, SegmentValues
from .rollout_advantages import RolloutAdvantages
from .turn import on_tokens


SCALES = ("whiten", "std", "none")


def scaled(
    advantages: Float[Tensor, "batch tokens"],
    counted: Bool[Tensor, "batch tokens"],
    rollout: Rollout,
    scale: str,
) -> Float[Tensor, "batch tokens"]:
    """Token advantages on a common scale, 0 where `counted` is False.

    Args:
        advantages: (B, T), at least float32, finite where `counted`.
        counted: (B, T) bool, the tokens over all of which, of every process, mean and deviation are taken.
        rollout: Gathers them.
        scale: `whiten` subtracts the mean and divides by the standard deviation, `std` only divides. If all tokens have the
            same advantage but for rounding, both give exactly 0.
    """
    advantages = torch.where(counted, advantages, 0.0)
    if scale == "none":
        return advantages
    everywhere = rollout.all(advantages)[rollout.all(counted)]
    if len(everywhere) < 2:
        return torch.zeros_like(advantages)
    # Of values, which are as large as rewards. Whitened, it would look like credit
    rewards = rollout.all_rewards[torch.isfinite(rollout.all_rewards)]
    rounding = 8 * torch.finfo(everywhere.dtype).eps * torch.cat([everywhere, rewards.to(everywhere)]).abs().max()
    if everywhere.max() - everywhere.min() <= rounding:
        return torch.zeros_like(advantages)
    shift = everywhere.mean() if scale == "whiten" else 0.0
    return torch.where(counted, (advantages - shift) / everywhere.std(), 0.0)


def vine_advantages(found: SegmentValues, rollout: Rollout, scale: str = "whiten") -> Float[Tensor, "batch tokens"]:
    """(B, T) token advantages of this process's completions (see the module docstring), 0 off the mask.

    A completion without a reward gets 0. One with an unknown value gets NaN on the tokens of the steps before and after it.
    """
    mask = rollout.mask & ~torch.isnan(rollout.rewards).unsqueeze(1)
    raw = on_tokens(at_least_float32(found.values).diff(dim=1), found.segments, mask)
    usable = (torch.isfinite(raw) | ~mask).all(-1, keepdim=True)
    return torch.where(usable, scaled(raw, mask & usable, rollout, scale), torch.where(mask, raw, 0.0))


@dataclass(frozen=True)
class Vine(RolloutAdvantages):
    """Each step is credited with what it adds to the expected reward, estimated from continuations (VinePPO).

    Args:
        count: K, continuations from the start of each step.
        every: What a step is. `step`: up to a line break, the end of a sentence or `;`. A number of tokens, or a regular
            expression whose matches end a step.
        scale: `whiten` subtracts the mean from the advantages of all tokens of a generation batch and divides by their
            standard deviation, `std` only divides, `none` leaves them on the scale of the rewards.
    """

    count: int = 9
    every: int | str = "step"
    scale: str = "whiten"

    name = "vine"
    paper = Paper(
        title="VinePPO: Refining Credit Assignment in RL Training of LLMs",
        id="2410.01679",
        citation=(
            "@inproceedings{kazemnejad2025vineppo,\n"
            "    title        = {{VinePPO: Refining Credit Assignment in RL Training of LLMs}},\n"
            "    author       = {Amirhossein Kazemnejad and Milad Aghajohari and Eva Portelance and Alessandro Sordoni and "
            "Siva Reddy and Aaron Courville and Nicolas {Le Roux}},\n"
            "    booktitle    = {International Conference on Machine Learning},\n"
            "    year         = 2025,\n"
            "    eprint       = {arXiv:2410.01679},\n"
            "}"
        ),
    )
    differences = (
        "Loss, ratio and KL penalty are those of the run, not of the code's PPO.",
        "A step ends at a line break, a sentence's end or `;`; the code cuts MATH by a parser of LaTeX and GSM8K at line "
        "breaks.",
        "A token belongs to one step whole: a step ends with the token that its last character is in. In the code, a token "
        "that spans two steps belongs to the one in which it starts.",
        "Every step is continued; the code's configuration for GSM8K stops after 25 steps, and the tokens from the last "
        "continued step's end on get no advantage.",
        "Whitening covers the tokens of a generation batch; in the code, those of a micro-batch of all processes.",
        "A continuation that reached the length limit has the reward that the reward functions give it; in the code it has "
        "a reward of 0, as the completion itself has.",
        "A continuation without a reward does not count in the mean. If none of a beginning has a reward, its completions "
        "get their sequence advantage.",
        "A completion without a reward, or without a token in the loss (`mask_truncated_completions`), is not continued and "
        "gets no advantage.",
        "Values are of the weighted sum of the rewards, and replace TRL's advantages: `scale_rewards` and "
        "`multi_objective_aggregation` have no effect. A group's standard deviation would be no scale: it is 0 where all "
        "are right or all wrong.",
        "In evaluation nothing is continued: each token gets its sequence advantage.",
    )

    def validate(self) -> None:
        self.require(self.count >= 1, "count", "at least 1")
        self.require(self.scale in SCALES, "scale", f"one of {', '.join(SCALES)}")
        try:
            every = check_every(self.every)
        except ValueError as error:
            raise ValueError(f"credit method {self.name!r}: {error}") from None
        object.__setattr__(self, "every", every)

    def continuations(self) -> tuple[Continuations, ...]:
        return (Continuations(self.every, self.count),)

    def _advantages(self, rollout: Rollout) -> Float[Tensor, "batch tokens"] | None:
        """`None` in evaluation."""
        found = rollout.values.get(self.continuations()[0])
        return (
            None
            if found is None
            else self.once(rollout, "advantages", lambda: vine_advantages(found, rollout, self.scale))
        )

    def rollout_stage(self, rollout: Rollout) -> Mapping[str, Float[Tensor, "batch tokens"]]:
        advantages = self._advantages(rollout)
        return {} if advantages is None else {"advantages": advantages}

    def rows_with_credit(self, rollout: Rollout) -> Bool[Tensor, " batch"] | None:
        advantages = self._advantages(rollout)
        return None if advantages is None else (advantages != 0).any(-1)

    def token_advantages(
        self,
        advantages: Float[Tensor, " batch"],
        weights: Float[Tensor, "batch tokens"] | None,
        inputs: CreditInputs,
    ) -> Float[Tensor, "batch tokens"] | Float[Tensor, " batch"]:
        if "advantages" not in inputs.rollout:  # in evaluation
            return advantages
        return super().token_advantages(advantages, weights, inputs)

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        return super().metrics(inputs) if "advantages" in inputs.rollout else {}
