"""Settings of dynamic sampling."""

import pytest
from helpers import config, letter_reward, prompts
from support.rollout import Place, make

from trl_credit import CreditGRPOTrainer


# What is refused


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        (
            {"dynamic_sampling": None, "dynamic_sampling_max_rounds": 3},
            r"`dynamic_sampling_max_rounds` \(3\) has no effect",
        ),
        (
            {"dynamic_sampling": None, "dynamic_sampling_reward": "x"},
            r"`dynamic_sampling_reward` \('x'\) has no effect",
        ),
        ({"dynamic_sampling_max_rounds": 1}, "must be at least 2, as the first round replaces nothing, got 1"),
        ({"dynamic_sampling_max_rounds": 3.5}, "must be a whole number, at least 2, as .*, got 3.5"),
        ({"dynamic_sampling": "maybe"}, "must be true, false or unset, got 'maybe'"),
        ({"dynamic_sampling_range": [0.1, 0.9]}, "needs `dynamic_sampling_reward`"),
        ({"dynamic_sampling_range": [0.9, 0.1], "dynamic_sampling_reward": "x"}, "two numbers, the lower first"),
        ({"dynamic_sampling_range": [0.1], "dynamic_sampling_reward": "x"}, "two numbers, the lower first"),
    ],
)
def test_settings_that_are_wrong(settings_, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **{"dynamic_sampling": True, **settings_})


def test_an_unknown_reward_is_named_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"no reward function 'leter_reward'. Did you mean 'letter_reward'"):
        make("no/such/model", tmp_path, prompts(4), letter_reward, dynamic_sampling_reward="leter_reward")


def test_an_environment_that_makes_the_prompts(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is None: the environment's `reset` makes the prompts"):
        CreditGRPOTrainer(
            model="no/such/model",
            environment_factory=Place,
            args=config(tmp_path, dynamic_sampling=True),
            train_dataset=None,
        )


def test_a_sampler_of_the_users_own(tmp_path):
    class Curriculum(CreditGRPOTrainer):
        def _get_train_sampler(self, dataset=None):
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"TRL's sampler, which Curriculum overrides"):
        Curriculum(
            model="no/such/model", reward_funcs=letter_reward, args=config(tmp_path, dynamic_sampling=True),
            train_dataset=prompts(4),
        )  # fmt: skip
