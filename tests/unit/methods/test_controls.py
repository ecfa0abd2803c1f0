"""The controls: random tokens, and another method's weights in random places."""

import pytest
import torch
from support.inputs import make_inputs, mapped

from trl_credit import RandomTokens, Shuffled, build_credit
from trl_credit.methods.draws import draws


def test_draws_are_even_and_of_the_completion_alone():
    ids = torch.randint(0, 1000, (64, 500), generator=torch.Generator().manual_seed(0))
    mask = torch.rand(64, 500, generator=torch.Generator().manual_seed(1)) < 0.8
    found = draws(ids, mask)
    counts = torch.histc(found[mask], bins=20, min=0, max=1)
    assert counts.sum() == mask.sum()  # all in [0, 1]
    assert (counts / counts.mean() - 1).abs().max() < 0.1
    assert (found[mask] - draws(ids, mask, seed=1)[mask]).abs().mean() > 0.3
    # Neighbours and equal tokens of other completions have nothing to do with each other
    pairs = torch.stack([found[:, :-1][mask[:, :-1] & mask[:, 1:]], found[:, 1:][mask[:, :-1] & mask[:, 1:]]])
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.02
    garbage = torch.where(mask, ids, 7)
    assert torch.equal(draws(garbage, mask)[mask], found[mask])
    wider = draws(torch.nn.functional.pad(ids, (3, 2)), torch.nn.functional.pad(mask, (3, 2)))[:, 3:-2]
    assert torch.equal(wider[mask], found[mask])
    assert torch.equal(draws(ids[5:9], mask[5:9]), found[5:9])


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_random_tokens_are_unbiased(fraction):
    """Over seeds, each token's mean weight is 1."""
    inputs = make_inputs(RandomTokens(), 0, 4, 30)
    weights = torch.stack([RandomTokens(fraction, seed).weights(inputs) for seed in range(2000)])
    assert weights[:, inputs.mask].unique().tolist() == pytest.approx([0.0, 1 / fraction])
    error = (1 / fraction - 1) ** 0.5 / 2000**0.5
    assert (weights.mean(0)[inputs.mask] - 1).abs().max() < 5 * error


@pytest.mark.parametrize(
    "of", ["gcpo", {"method": "dgpo", "temperature": 0.01}, {"method": "forking", "fraction": 0.4}]
)
def test_shuffled_weights_are_the_methods_in_other_places(of):
    method = Shuffled(of)
    inputs = make_inputs(method, 3, 6, 40)
    own, shuffled = build_credit(of).weights(inputs), method.weights(inputs)
    moved = 0
    for row in range(6):
        on = inputs.mask[row]
        assert torch.equal(own[row, on].sort().values, shuffled[row, on].sort().values)
        moved += int((own[row, on] != shuffled[row, on]).sum())
    assert moved > 20
    assert (shuffled[~inputs.mask] == 0).all()
    assert not torch.equal(Shuffled(of, seed=1).weights(inputs), shuffled)


def test_every_place_is_as_likely():
    inputs = make_inputs(RandomTokens(), 0, 2, 5)
    inputs = mapped(inputs, lambda x: x[:1])
    inputs.mask[:] = True
    counts = torch.zeros(5)
    for seed in range(3000):
        counts += Shuffled({"method": "random", "fraction": 0.2}, seed).weights(inputs)[0] > 0
    kept = (RandomTokens(0.2).weights(inputs) > 0).sum()
    torch.testing.assert_close(counts / 3000, torch.full((5,), kept.item() / 5), atol=0.04, rtol=0)


def test_what_has_no_weights_cannot_be_shuffled():
    with pytest.raises(ValueError, match="`of` is 'uniform', which has no token weights"):
        Shuffled("uniform")
    with pytest.raises(ValueError, match="needs a value for `of`"):
        build_credit("shuffled")


def test_more_than_weights_cannot_be_shuffled():
    """A control that left out a part would not be the method's control."""
    for of in ("otb", {"method": "mix", "parts": ["gcpo", {"method": "teacher", "model": "m"}]}):
        with pytest.raises(ValueError, match="does more than weight tokens"):
            Shuffled(of)
    assert Shuffled(build_credit(["gcpo", "dgpo"]).to_dict()).mean_one
