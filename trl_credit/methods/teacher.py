"""On-policy distillation as credit: a teacher's log-probs add to the advantage.

    a_t = c (log pi_teacher(y_t | x, y_<t) - log pi_student(y_t | x, y_<t))
    A_t = A + a_t

The sum over a completion of the term's negative estimates c times the KL divergence from the student to the teacher, so
that the term pulls the policy to the teacher while the reward is still followed. The student is the policy that
generated. Alone, without the reward: `credit: {method: mix, parts: [{method: teacher, model: ...}], advantage: 0.0}`.

Reference: On-policy distillation (arXiv 2306.13649) gives the objective. As a term of the advantage it is in slime
(`apply_opd_kl_to_advantages`, `--opd-kl-coef` 1.0), ms-swift (`teacher_kl_coef` 1.0) and, without the reward, NeMo-RL
(`OPDAdvantageEstimator`).

Known weakness: the term has no bound. A token that the teacher finds impossible has a gap of 10 to 30 nats, against
advantages near 1. `credit/teacher_gap` and `credit/advantage_change` show its size; a smaller `coefficient` helps.

Differences from these codes are numbered in [`Teacher.differences`].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..signals.base import Signal
from ..signals.other_model import OtherModelLogps
from .base import CreditMethod, Paper
from .inputs import CreditInputs
from .ops import at_least_float32
from .schedule import check_schedule, ever_nonzero, value_at


def teacher_term(
    teacher_logps: Float[Tensor, "batch tokens"],
    student_logps: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    coefficient: float = 1.0,
) -> Float[Tensor, "batch tokens"]:
    """The term a_t (see the module docstring).

    Args:
        teacher_logps: (B, T) log-probs of the completion's tokens under the teacher, nats.
        student_logps: (B, T) log-probs of the same tokens under the student, nats.
        mask: (B, T) bool, the tokens in the loss.
        coefficient: c.

    Returns:
        (B, T) float without gradient, at least float32, 0 off the mask. A completion with a NaN or infinite log-prob on
        its mask gets 0.
    """
    gap = at_least_float32(teacher_logps.detach()) - at_least_float32(student_logps.detach())
    usable = (torch.isfinite(gap) | ~mask).all(-1, keepdim=True)
    return torch.where(mask & usable, coefficient * gap, 0.0)


@dataclass(frozen=True)
class Teacher(CreditMethod):
    """On-policy distillation: adds how much likelier a teacher finds each token to the advantage.

    Args:
        model: The teacher: path or hub id of a model with the policy's tokenizer and vocabulary.
        coefficient: c, the weight of the term: a number, or a schedule such as `{from: 1.0, to: 0, updates: 100}`.
    """

    model: str
    coefficient: float | dict | list = 1.0

    name = "teacher"
    paper = Paper(
        title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        id="2306.13649",
        citation=(
            "@inproceedings{agarwal2024onpolicy,\n"
            "    title        = {{On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes}},\n"
            "    author       = {Rishabh Agarwal and Nino Vieillard and Yongchao Zhou and Piotr Stanczyk and Sabela Ramos "
            "and Matthieu Geist and Olivier Bachem},\n"
            "    booktitle    = {International Conference on Learning Representations},\n"
            "    year         = 2024,\n"
            "    eprint       = {arXiv:2306.13649},\n"
            "}"
        ),
    )
    differences = (
        "The paper distills with a loss over the whole vocabulary; here, as in slime, ms-swift and NeMo-RL, the sampled "
        "token's log-probs enter the advantage.",
        "NeMo-RL leaves the reward out; here and in slime and ms-swift the term adds to it. A list with `advantage: 0.0` "
        "leaves it out.",
        "slime can whiten the sum of advantage and term, which changes what the coefficient means; here nothing is "
        "normalised after the term.",
        "The student's log-probs are those of the policy that generated, if TRL has them. If every update is on-policy, "
        "they are the live policy's, which are the same.",
        "A completion with a NaN or infinite log-prob gets no term and is counted in `credit/nonfinite_tokens`.",
    )
    reweights = False
    policies = ("tokens",)

    def validate(self) -> None:
        if not self.model.strip():
            raise ValueError(
                "credit method 'teacher': `model` is empty. Name the teacher, a model with the policy's tokenizer: a folder "
                "or a hub id."
            )
        check_schedule(self.coefficient, self.name, "coefficient")
        self.require(ever_nonzero(self.coefficient), "coefficient", "other than 0 (0 is `uniform`)")

    @property
    def _signal(self) -> Signal:
        return OtherModelLogps(self.model)

    def signals(self) -> tuple[Signal, ...]:
        return (self._signal,)

    @staticmethod
    def _student(inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        return inputs.policy_logps if inputs.old_logps is None else inputs.old_logps

    def term(self, inputs: CreditInputs) -> Float[Tensor, "batch tokens"]:
        teacher = inputs.signals[self._signal].masked_fill(inputs.nonfinite, torch.nan)
        return teacher_term(teacher, self._student(inputs), inputs.mask, value_at(self.coefficient, inputs.step))

    def is_uniform(self, metrics: Mapping[str, float]) -> None:
        """Never: a policy that has come close to its teacher is the method's aim."""
        return

    def metrics(self, inputs: CreditInputs) -> dict[str, torch.Tensor]:
        """`teacher_gap`: mean of log pi_teacher - log pi_student (nats), whose negative estimates the KL divergence from
        student to teacher. `coefficient`, if it is a schedule."""
        gap = inputs.signals[self._signal] - self._student(inputs)
        return {"teacher_gap": gap} | self.scheduled(inputs, "coefficient")
