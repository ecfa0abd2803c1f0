"""Credit inputs of awkward shapes."""

import dataclasses

import torch

from trl_credit import CreditInputs, CreditMethod


VOCAB = 50


def make_inputs(method: CreditMethod, seed: int, batch: int, length: int, dtype=torch.float32) -> CreditInputs:
    """Inputs with ragged masks (holes included), some rows of which are empty or one token long."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator).to(dtype)

    mask = uniform(batch, length) < uniform(batch, 1) * 1.5
    mask[0] = False
    mask[-1] = False
    mask[-1, seed % length] = True
    signals = {signal: uniform(batch, length) ** 2 for signal in method.signals()}
    for signal, values in signals.items():
        if "Logps" in type(signal).__name__:
            signals[signal] = -4 * values
    return CreditInputs(
        mask=mask,
        policy_logps=-4 * uniform(batch, length) ** 2,
        policy_entropy=2 * uniform(batch, length),
        vocab_size=VOCAB,
        signals=signals,
    )


def mapped(inputs: CreditInputs, function) -> CreditInputs:
    return dataclasses.replace(
        inputs,
        mask=function(inputs.mask),
        policy_logps=function(inputs.policy_logps),
        policy_entropy=function(inputs.policy_entropy),
        signals={signal: function(values) for signal, values in inputs.signals.items()},
    )
