"""Values from continuations, against a policy whose values are known in closed form."""

import numpy as np
import pytest

from trl_credit.values.estimate import sampled_values, standard_error


def continuation_values(prefixes, continue_from, reward_of, **settings):
    """Generation and rewards apart."""
    return sampled_values(prefixes, lambda chosen, draws: reward_of(chosen, continue_from(chosen, draws)), **settings)


# A policy of three states that moves five times; its reward is 1 if it ends in the last state
MOVES = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.05, 0.05, 0.9]])
LENGTH = 5


def value_of(prefix: tuple[int, ...]) -> float:
    """Closed form: the distribution after the moves that are left."""
    distribution = np.eye(3)[prefix[-1]]
    for _ in range(LENGTH - len(prefix)):
        distribution = distribution @ MOVES
    return float(distribution[2])


def chain(seed: int, asked: list | None = None):
    """Continues prefixes of the chain. Draw k of a prefix always gives the same."""

    def continue_from(prefixes, draws):
        rows = []
        for prefix, draw in zip(prefixes, draws, strict=True):
            rng = np.random.default_rng([seed, draw, *prefix])
            states = list(prefix)
            while len(states) < LENGTH:
                states.append(int(rng.choice(3, p=MOVES[states[-1]])))
            rows.append(states[len(prefix) :])
            if asked is not None:
                asked.append((prefix, draw))
        return rows

    return continue_from


def reward_of(prefixes, rows):
    return [float([*prefix, *row][-1] == 2) for prefix, row in zip(prefixes, rows, strict=True)]


PREFIXES = [(0,), (0, 1), (0, 1, 2), (0, 0, 0, 0), (2, 2, 2), (1, 0, 2, 1), (2, 2, 2, 2, 2)]


def estimates(seed, **settings):
    return continuation_values(PREFIXES, chain(seed), reward_of, **settings)


def test_unbiased_for_a_fixed_number_and_its_error_covers():
    truth = np.array([value_of(prefix) for prefix in PREFIXES])
    runs = [estimates(seed, least=16, most=16) for seed in range(200)]
    means = np.array([run.mean for run in runs])
    errors = np.sqrt(np.maximum(truth * (1 - truth), 0) / 16 / len(runs))
    assert (np.abs(means.mean(0) - truth) <= 4 * errors + 1e-12).all()
    stated = np.array([run.stderr for run in runs])
    assert (stated > 0).all()
    covered = (np.abs(means - truth) <= 2 * stated).mean(0)
    assert (covered > 0.88).all()  # 95 % but for the coarseness of 16 draws
    # No larger than they need be, where the value is not at a bound
    middle = (truth > 0.2) & (truth < 0.8)
    assert middle.any()
    assert np.allclose(stated.mean(0)[middle], means.std(0)[middle], rtol=0.15)


def test_stopping_early_biases_by_a_small_part_of_the_error():
    truth = np.array([value_of(prefix) for prefix in PREFIXES])
    runs = [estimates(seed, least=8, most=64, stderr=0.1) for seed in range(200)]
    means, stated = np.array([r.mean for r in runs]), np.array([r.stderr for r in runs])
    assert (np.abs(means.mean(0) - truth) < 0.35 * stated.mean(0)).all()
    assert ((np.abs(means - truth) <= 2 * stated).mean(0) > 0.88).all()
    assert (stated <= 0.1).all()  # 64 suffice for the least certain share


def test_halves_are_means_of_other_draws():
    run = estimates(3, least=8, most=8)
    rewards = np.array([reward_of([p] * 8, chain(3)([p] * 8, list(range(8)))) for p in PREFIXES])
    assert np.allclose(run.halves, np.stack([rewards[:, ::2].mean(1), rewards[:, 1::2].mean(1)], 1))
    assert np.allclose(run.mean, rewards.mean(1))
    assert (run.count == 8).all()
    truth = np.array([value_of(prefix) for prefix in PREFIXES])
    noise = np.array([r.halves for r in (estimates(s, least=8, most=8) for s in range(200))]) - truth[:, None]
    products = noise[..., 0] * noise[..., 1]
    errors = products.std(0) / np.sqrt(len(products))
    assert (np.abs(products.mean(0)) <= 4 * errors + 1e-12).all()


def test_draws_as_many_as_the_error_asks_for():
    asked = []
    run = continuation_values(PREFIXES, chain(0, asked), reward_of, least=4, most=40, stderr=0.12)
    for i, prefix in enumerate(PREFIXES):
        draws = [draw for p, draw in asked if p == prefix]
        assert draws == list(range(run.count[i]))  # each once, none left out
        assert run.count[i] == 40 or run.stderr[i] <= 0.12
    assert len(set(run.count)) > 1
    certain = continuation_values([(2, 2, 2, 2, 2)], chain(0), reward_of, least=4, most=40, stderr=0.25)
    assert certain.count.tolist() == [4]


def test_rewards_beyond_the_bounds_and_missing_ones():
    rewards = {0: [3.0, -1.0] * 8, 1: [float("nan")] * 16, 2: [0.5, float("nan")] * 8}

    def rewards_of(prefixes, draws):
        return [rewards[p][d] for p, d in zip(prefixes, draws, strict=True)]

    run = sampled_values([0, 1, 2], rewards_of, least=2, most=16, stderr=0.05)
    assert run.mean[0] == 1.0
    assert run.count.tolist() == [16, 0, 8]
    assert np.isnan(run.mean[1])
    assert np.isnan(run.stderr[1])
    assert run.mean[2] == 0.5
    assert np.isnan(run.halves[2, 1])
    sample = np.array([3.0, -1.0] * 8 + [-1.0, -1.0, 3.0, 3.0])
    assert run.stderr[0] == pytest.approx(sample.std() / 4)


def test_all_draws_alike_are_not_without_error():
    for n in (4, 8, 64):
        share = (n + 2) / (n + 4)
        assert standard_error([1.0] * n) == pytest.approx(np.sqrt(share * (1 - share) / n))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least": 3}, "`least` must be an even number"),
        ({"least": 8, "most": 4}, "`most` must be at least"),
        ({"stderr": 0.0}, "`stderr` must be positive"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        estimates(0, **settings)


def test_a_caller_that_loses_draws():
    with pytest.raises(ValueError, match="8 continuations were asked for, and 7"):
        sampled_values([0], lambda prefixes, draws: [0.0] * (len(prefixes) - 1), least=8)


@pytest.mark.parametrize(
    ("stderr", "most", "rounds"), [(0.13, 64, [8, 8]), (0.13, 14, [8, 6]), (0.07, 64, [8, 8, 16, 20])]
)
def test_rounds_draw_what_the_error_asks_for(stderr, most, rounds):
    """An even number, at most as many as there are. The error of rewards that are 0 half of the time: 0.5 / sqrt(count)."""
    drawn = []

    def rewards_of(prefixes, draws):
        drawn.append(len(draws))
        return [float(draw % 2) for draw in draws]

    run = sampled_values([0], rewards_of, least=8, most=most, stderr=stderr)
    assert drawn == rounds
    assert run.count.tolist() == [sum(rounds)]
