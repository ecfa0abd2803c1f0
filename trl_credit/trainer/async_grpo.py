"""TRL's experimental AsyncGRPOTrainer with token-level credit.

A vLLM server generates while the trainer trains. TRL packs the completions into one row without padding, in which
completions share the tokens of their common beginning, and its loss is a flat list of terms: the packed position that
predicts a token, the generator's log-prob, the advantage, and the completion.

TRL's loss takes the advantages of these terms before its forward, and multiplies after it. So the forward that it gets
is wrapped: when log-probs are known, the method's token advantages are written over those that TRL took.
"""

import functools
import inspect
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from trl import GRPOTrainer
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

from .._util.settings import Unchecked
from ..batching import UpdatePlan
from ..credit_pass import CreditPass
from ..methods import CreditMethod, Uniform
from ..methods.metrics import credit_metrics
from ..methods.registry import build_credit
from ..methods.spec import read_spec
from ..signals.base import PolicyForward, SignalSource
from .collapse import CollapseWatches
from .exactness import check_policy


@dataclass
class AsyncCreditGRPOConfig(AsyncGRPOConfig):
    r"""
    Config of the [`AsyncCreditGRPOTrainer`]: every field of TRL's `AsyncGRPOConfig`, plus the credit method.

    Parameters:
        credit (`str` or `dict[str, Any]` or [`CreditMethod`], *optional*):
            The credit method, as in [`CreditGRPOConfig`]. It must need nothing but the policy's own forward: `uniform`,
            `fipo`, `forking`, `random`, `shuffled` of these, or a list of them. If unset: `uniform`.
    """

    _VALID_DICT_FIELDS = [*AsyncGRPOConfig._VALID_DICT_FIELDS, "credit"]

    credit: Annotated[dict | str | None, Unchecked] = field(
        default=None,
        metadata={
            "help": "The credit method: a name (`fipo`, `random`), a mapping of `method` and its parameters (as text on the "
            "command line), or the path of your own class. It must need nothing but the policy's own forward. If unset: "
            "`uniform`."
        },
    )

    def __post_init__(self):
        self.credit = read_spec(self.credit)  # transformers reads JSON alone
        super().__post_init__()
        if self.credit is not None:
            method = build_credit(self.credit)
            check_own_forward(method)
            self.credit = method.to_dict()


class AsyncCreditGRPOTrainer(AsyncGRPOTrainer):
    """
    TRL's experimental `AsyncGRPOTrainer` with a credit method that needs nothing but the policy's own forward.

    It takes every argument of `AsyncGRPOTrainer`. `args` may be an [`AsyncCreditGRPOConfig`], or TRL's own config, which
    means `uniform`: bit-identical to TRL's trainer. Besides TRL's metrics it logs `credit/weight_std`,
    `credit/weight_max`, `credit/effective_fraction`, `credit/nonfinite_tokens` and the method's own.

    What a method knows as the old policy is the generator: the log-probs that vLLM reported, which are up to
    `max_staleness` syncs old and differ from the policy's by numerics, too. A token of a tool keeps its place among its
    completion's tokens, without credit. A micro-batch of `forking`'s quantile is a packed row of each process.

    It has none of [`CreditGRPOTrainer`]'s optimizations, guards and exact resume, which belong to TRL's `GRPOTrainer`.

    Attributes:
        credit_method (`CreditMethod`): The method in use.
        credit_pass (`CreditPass`): Computes the token advantages.

    Raises:
        ValueError: Unknown method or parameter, or a method that needs more than the policy's forward. Raised before the
            model is loaded.
    """

    # What `forking` calls; it reads the accelerator only
    get_high_entropy_mask = GRPOTrainer.get_high_entropy_mask

    @functools.wraps(AsyncGRPOTrainer.__init__)
    def __init__(self, *args, **kwargs):
        training_args = inspect.signature(AsyncGRPOTrainer.__init__).bind(self, *args, **kwargs).arguments.get("args")
        credit = getattr(training_args, "credit", None)
        self.credit_method = Uniform() if credit is None else build_credit(credit)
        check_own_forward(self.credit_method)
        parts = self.credit_method.components().values()
        self._tag_names = [*AsyncGRPOTrainer._tag_names, "trl-credit", *dict.fromkeys(part.name for part in parts)]
        self._paper = vars(next((part.paper for part in parts if part.paper.is_on_arxiv), Uniform.paper))
        if type(self.credit_method) is not Uniform:
            self._name = " + ".join(part.name.upper() for part in parts)
        self.credit_pass = CreditPass(self.credit_method, self)
        self._collapse = CollapseWatches(self.credit_method)
        super().__init__(*args, **kwargs)

    @property
    def forward_dtype(self) -> torch.dtype:
        """Dtype of the policy's forward."""
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return mixed.get(self.accelerator.mixed_precision, self.accelerator.unwrap_model(self.model).dtype)

    def compute_loss(self, model, inputs, *args, **kwargs):
        advantages = _TakenEarly(inputs["advantages"])

        def forward(**arguments):
            outputs = model(**arguments)
            advantages.taken.copy_(self._token_advantages(inputs, outputs))
            return outputs

        return super().compute_loss(forward, {**inputs, "advantages": advantages}, *args, **kwargs)

    @torch.no_grad()
    def _token_advantages(self, inputs: dict[str, torch.Tensor], outputs: Any) -> torch.Tensor:
        """(M,) advantages of the loss's terms, given the policy's forward."""
        batch, rows, columns, index = unpacked(inputs)

        def by_row(values: torch.Tensor) -> torch.Tensor:
            table = values.new_zeros(batch["completion_ids"].shape)
            table[rows, columns] = values.flatten()[index]
            return table

        every = list(range(len(batch["advantages"])))
        started = self.credit_pass.start(self.model, batch, UpdatePlan(every, {}, rows=len(every)))
        policy = PolicyForward(by_row(outputs.log_probs.detach()), by_row(outputs.entropy.detach()), None)
        result = self.credit_pass.finish(started, policy, self.state.global_step)
        found = credit_metrics(
            self.credit_method, result.inputs, result.weights, result.unscored, self.accelerator.gather
        )
        for name, value in found.items():
            self._metrics["train"][name].append(value)
        self._collapse.see(self.state.global_step, found, result.inputs)
        advantages = result.token_advantages
        return advantages[rows] if advantages.dim() == 1 else advantages[rows, columns]


class _TakenEarly:
    """Stands for the advantages in TRL's batch, and keeps what TRL's loss takes of them."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    def __getitem__(self, selected: torch.Tensor) -> torch.Tensor:
        self.taken = self.values[selected]  # a copy
        return self.taken


def unpacked(
    inputs: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Completions as rows, as TRL's GRPOTrainer has them.

    Args:
        inputs: TRL's packed batch of one process, with M terms of B completions.

    Returns:
        A batch of (B, T) tensors, in which a completion starts with its first token in the loss; and for each term its
        row, its column, and the packed position that predicts it, (M,) each.
    """
    packed, terms = inputs["attention_mask"].bool(), inputs["token_index"] >= 0
    index, rows = inputs["token_index"][terms], inputs["segment_id"][terms]
    positions = inputs["position_ids"][packed][index]
    # Without terms, one row without a token, so that this process gathers metrics as the others do
    count = int(rows.max()) + 1 if len(rows) else 1
    starts = positions.new_full((count,), torch.iinfo(positions.dtype).max)
    starts = starts.scatter_reduce_(0, rows, positions, "amin")
    columns = positions - starts[rows]
    width = int(columns.max()) + 1 if len(rows) else 1

    def table(values: torch.Tensor) -> torch.Tensor:
        result = values.new_zeros(count, width)
        result[rows, columns] = values
        return result

    advantages = inputs["advantages"].new_zeros(count)
    advantages[rows] = inputs["advantages"][terms]
    mask = table(torch.ones_like(index))
    return (
        {
            "completion_ids": table(inputs["shift_labels"][packed][index]),
            "completion_mask": mask,
            "tool_mask": mask,
            "old_per_token_logps": table(inputs["old_log_probs"][terms]),
            "advantages": advantages,
        },
        rows,
        columns,
        index,
    )


def check_own_forward(method: CreditMethod) -> None:
    """Raises `ValueError` if a method needs more than the forward in TRL's loss."""
    check_policy(method, "tokens")
    way_out = "Use CreditGRPOTrainer, or one of uniform, fipo, forking, random."
    for part in method.components().values():
        reason = None
        if part.has_rollout_stage:
            reason = "whole groups of completions, and packed rows hold what the queue delivers"
        elif part.shapes_ratio:
            reason = "to change the loss's ratio"
        else:
            for signal in part.signals():
                source = signal.source()
                if source.has_forward or source.needs_hidden_states or _has_hooks(source):
                    reason = f"the signal {signal.title!r}, which takes more than the forward in the loss"
        if reason is not None:
            raise ValueError(f"credit method {part.name!r} does not work asynchronously: it needs {reason}. {way_out}")


def _has_hooks(source: SignalSource) -> bool:
    hooks = ("before_trainer_init", "after_trainer_init", "extend_rollout")
    return any(getattr(type(source), name) is not getattr(SignalSource, name) for name in hooks)
