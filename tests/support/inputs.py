"""Credit inputs of awkward shapes."""

import torch

from trl_credit import CreditInputs, CreditMethod, build_credit
from trl_credit.methods.rollout import Continuations, Rollout, SegmentValues


VOCAB = 50
# What `vine` asks for at its defaults
DEFAULT_REQUESTS = (Continuations(),)

# Values for parameters that have no default
REQUIRED: dict[str, dict] = {"shuffled": {"of": "gcpo"}, "teacher": {"model": "a/teacher"}}


def built(name: str) -> CreditMethod:
    """A registered method at its defaults."""
    return build_credit({"method": name, **REQUIRED.get(name, {})})


def kind_of(method: CreditMethod) -> str:
    """Which of [`CreditMethod`]'s kinds a method is of, or `uniform`."""
    if method.own_advantages:
        return "own advantages"
    if method.has_term:
        return "terms"
    return ("weights" if method.mean_one else "factors") if method.reweights else "uniform"


def make_values(seed: int, mask: torch.Tensor, rewards: torch.Tensor) -> SegmentValues:
    """Values of segments of four columns, ninths."""
    generator = torch.Generator().manual_seed(seed + 2)
    shape = (len(mask), -(-mask.size(1) // 4) + 1)
    values = torch.randint(0, 10, shape, generator=generator).to(rewards.dtype) / 9
    values[:, -1] = rewards
    return SegmentValues(torch.arange(mask.size(1)).div(4, rounding_mode="floor").expand_as(mask), values)


def make_rollout(
    seed: int, mask: torch.Tensor, dtype=torch.float32, hidden: int = 6, requests=DEFAULT_REQUESTS
) -> Rollout:
    """Completions in groups of two or three with rewards of 0, 0.5 and 1; one has no reward."""
    generator = torch.Generator().manual_seed(seed + 1)
    batch, turns = len(mask), -(-mask.size(1) // 4)
    rewards = torch.randint(0, 3, (batch,), generator=generator).to(dtype) / 2
    rewards[seed % batch] = torch.nan
    logps = -3 * torch.rand(mask.shape, generator=generator).to(dtype)
    spread = torch.rand(mask.shape, generator=generator).to(dtype)
    return Rollout(
        mask=mask,
        token_ids=torch.randint(0, VOCAB, mask.shape, generator=generator),
        advantages=torch.randn(batch, generator=generator).to(dtype),
        rewards=rewards,
        groups=torch.arange(batch) // 2 if batch % 2 == 0 else torch.arange(batch) // 3,
        logps=logps,
        sum_squared_probs=(2 * logps).exp() + (1 - logps.exp()).square() * spread,
        hidden_states=torch.randn(*mask.shape, hidden, generator=generator).to(dtype),
        turns=torch.arange(mask.size(1)).div(4, rounding_mode="floor").expand_as(mask),
        turn_rewards=torch.randint(0, 3, (batch, turns), generator=generator).to(dtype) / 2,
        turn_states=torch.randint(1, 4, (batch, turns), generator=generator),
        values={request: make_values(seed, mask, rewards) for request in requests},
    )


def ragged_masks(seed: int, batch: int, length: int) -> torch.Tensor:
    """(B, T) bool with holes. The first row is empty, and the last has one token."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 1.5 * torch.rand(batch, 1, generator=generator)
    mask[0] = False
    mask[-1] = False
    mask[-1, seed % length] = True
    return mask


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
    logps = -4 * uniform(batch, length) ** 2
    rollout = make_rollout(seed, mask, dtype, requests=method.continuations())
    advantages = rollout.advantages.clone()
    advantages[seed % batch] = 0
    return CreditInputs(
        mask=mask,
        policy_logps=logps,
        policy_entropy=2 * uniform(batch, length),
        vocab_size=VOCAB,
        signals=signals,
        advantages=advantages,
        old_logps=logps + uniform(batch, length) - 0.5,
        sampling_logps=logps + (uniform(batch, length) - 0.5) / 10,
        token_ids=rollout.token_ids,
        turns=rollout.turns,
        step=7,
        rollout=method.rollout_stage(rollout),
    )


def credit(method: CreditMethod, inputs: CreditInputs) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(B, T) weights, if the method has any, and (B, T) token advantages, 0 off the mask."""
    weights = method.weights(inputs)
    advantages = method.token_advantages(inputs.advantages, weights, inputs)
    advantages = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    return weights, torch.where(inputs.mask, advantages, 0.0)


def mapped(inputs: CreditInputs, function) -> CreditInputs:
    return inputs.map(function)
