"""What a credit method asks for, from what its signals and stages say about themselves: no method is known by name."""

from collections.abc import Callable
from pathlib import Path

from ..methods.base import CreditMethod
from ..signals.base import Signal, SignalSource
from .sizes import Model
from .work import Pass


def passes_of(
    method: CreditMethod,
    policy: str,
    adapters: bool,
    completion: int,
    model_of: Callable[[str], Model],
    follows: bool = False,
) -> list[Pass]:
    """The forwards that a method adds to an update.

    Args:
        method: The credit method.
        policy: Path or hub id of the policy's initial weights.
        adapters: Whether only adapters are trained.
        completion: Tokens of a completion.
        model_of: Gives the sizes of a model by path or hub id.
        follows: Whether a reference follows the policy (`sync_ref_model`), so that no iteration can use another's result.
    """
    always = method.signals_without_advantage()
    found = [
        _pass_of(signal, source, signal in always, policy, adapters, completion, model_of, follows)
        for signal in method.signals()
        if (source := signal.source()).has_forward
    ]
    if method.rollout_needs:
        found.append(Pass("the policy that generated", every_row=_reads_every_row(method)))
    return found


def _reads_every_row(method: CreditMethod) -> bool:
    parts = [part for part in method.components().values() if part.rollout_needs]
    return any(type(part).rollout_rows is CreditMethod.rollout_rows for part in parts)


def _pass_of(
    signal: Signal,
    source: SignalSource,
    every_row: bool,
    policy: str,
    adapters: bool,
    completion: int,
    model_of: Callable[[str], Model],
    follows: bool,
) -> Pass:
    frozen = source.frozen_model(policy, adapters)
    kept = type(source).bytes_per_token is not SignalSource.bytes_per_token and not (follows and source.follows_policy)
    return Pass(
        title=signal.title if frozen is None else "reference" if frozen == policy else Path(frozen).name,
        added=source.added_tokens(completion),
        repeated=not kept,
        compares=source.needs_hidden_states,
        every_row=every_row,
        fused=frozen is None and not source.needs_hidden_states,
        model=None if frozen is None else model_of(frozen),
    )
