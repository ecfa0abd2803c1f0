"""What is made of valued completions: which tokens and completions count, and for which prompt."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from trl_credit.bench.true.results import Valued, results_of
from trl_credit.methods import Uniform, build_credit
from trl_credit.records.record import CompletionCredit
from trl_credit.values.store import Sample, SampleValues


class Scorer:
    """Gives each token its place in the completion, besides uniform credit. The last token is not in the loss."""

    def __init__(self):
        self.methods = {"place": build_credit("gcpo"), "uniform": Uniform()}
        self.given = [{"place": "set it.", "uniform": "nothing"}]
        self.calls = []

    def score(self, completions, one_batch):
        assert one_batch
        self.calls.append(completions)
        self.advice = dict(self.given[min(len(self.calls), len(self.given)) - 1])
        return [self.record(completion) for completion in completions]

    def record(self, completion):
        count = len(completion.token_ids)
        mask = np.arange(count) < count - 1
        return CompletionCredit(
            prompt="",
            completion="",
            tokens=[""] * count,
            token_ids=np.array(completion.token_ids),
            mask=mask,
            logps=np.zeros(count),
            entropy=np.zeros(count),
            token_advantages={"place": np.arange(count) * 1.0, "uniform": np.full(count, completion.advantage)},
            advantage=completion.advantage,
            reward=completion.reward,
            group=completion.group,
        )


def valued(prompt, index, reward, values, halves=None):
    count = len(values) - 1
    sample = Sample(
        prompt=prompt,
        index=index,
        token_ids=tuple(range(count)),
        text="",
        finished=True,
        reward=reward,
        advantage=1.0,
        example={"prompt": f"prompt {prompt}"},
        prompt_ids=(prompt,),
    )
    mean = np.array(values, float)
    halves = np.stack([mean, mean], -1) if halves is None else np.array(halves, float)
    source = ["sampled"] * count + ["reward"]
    return Valued(
        sample, SampleValues(np.arange(count + 1), mean, np.full(count + 1, 0.1), np.full(count + 1, 8), halves, source)
    )


def made(rows, given=None, **settings):
    config = SimpleNamespace(
        num_generations=2, batch=8, gradients=False, methods=["place"], takes_every_method=lambda: False
    )
    vars(config).update(settings)
    scorer = Scorer()
    scorer.given = given or scorer.given
    return results_of(config, scorer, rows, lambda *_: None), scorer


ROWS = [
    valued(5, 0, 1.0, [0.5, 0.5, 0.75, 1.0]),
    valued(5, 1, 0.0, [0.5, 0.25, 0.0, 0.0]),
    valued(7, 0, 1.0, [0.5, 0.5, 1.0]),
    valued(7, 1, 1.0, [0.25, 0.75, 1.0]),
    valued(7, 2, 0.0, [0.5, 0.0, 0.0]),
    valued(7, 3, 0.0, [0.5, 0.5, 0.0]),
]


def test_groups_are_those_of_a_prompt_s_samples():
    results, scorer = made(ROWS)
    assert [len({c.group for calls in scorer.calls for c in calls if c.prompt == f"prompt {k}"}) for k in (5, 7)] == [
        1,
        2,
    ]
    # First and second groups apart: methods that compare a whole batch must not see both
    assert [[c.prompt[-1] for c in completions] for completions in scorer.calls] == [[*"5577"], [*"77"]]
    _, alone = made(ROWS, batch=1)
    assert [[c.prompt[-1] for c in completions] for completions in alone.calls] == [[*"55"], [*"77"], [*"77"]]
    samples = results["samples"]
    assert (samples["prompts"], samples["groups"], samples["mixed_groups"], samples["completions"]) == (2, 3, 1, 6)
    assert samples["mean_reward"] == pytest.approx(3 / 6)
    assert samples["mean_tokens"] == pytest.approx(14 / 6)
    assert samples["reward_above_value"]["mean"] == pytest.approx((0.0 + 0.25 / 4) / 2)
    assert samples["prefixes"] == 4 + 4 + 3 + 3 + 3 + 3
    assert samples["sources"] == {"sampled": 14, "certain": 0, "reward": 6, "mistake": 0}
    # Prefixes that completions of a prompt share are estimated once: two beginnings and the tokens 0, 0 1 and 0
    assert samples["estimates"] == 5
    assert samples["continuations"] == 40
    assert results["baselines"] == ["uniform"]
    assert results["uniform_in_effect"] == {"place": "set it."}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([{"place": "first"}, {}, {"place": "last"}], {"place": "first"}),  # the second batch has equal rewards
        ([{}, {"place": "equal rewards"}, {}], {}),
        ([{"place": "first"}, {"place": "last"}], {"place": "first"}),
    ],
)
def test_a_method_is_uniform_in_effect_if_it_is_in_every_batch_that_counts(given, expected):
    rows = [*ROWS[:2], *ROWS[2:4], valued(8, 0, 0.0, [0.5, 0.5, 0.0]), valued(8, 1, 0.0, [0.5, 0.5, 0.0])]
    assert made(rows, given, batch=1)[0]["uniform_in_effect"] == expected
    mixed = [*ROWS[:2], valued(8, 0, 0.0, [0.5, 0.5, 0.0]), valued(8, 1, 1.0, [0.5, 0.5, 1.0])]
    for one in ([{"place": "first"}, {}], [{}, {"place": "last"}]):
        assert made(mixed, one, batch=1)[0]["uniform_in_effect"] == {}


def test_methods_that_were_left_out_are_named_unless_they_are_scored_all_the_same():
    served = ({}, {"gcpo": "needs a thing", "vine": "continues completions"})  # `place` is a gcpo
    results, _ = made(ROWS, takes_every_method=lambda: True, served=served)
    assert results["notes"] == ["No vine: it continues completions."]


def test_tokens_that_count():
    """Those in the loss with a true advantage."""
    true = np.array([0.0, 0.25, -0.25, -0.25, 0.0, 0.5, -0.5, 0.0])
    place = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    results, _ = made(ROWS)
    assert results["scores"]["place"]["correlation"]["mean"] == pytest.approx(np.corrcoef(true, place)[0, 1])
    assert results["notes"] == []
    # Without the one prompt, all of the mass is on tokens without credit; without the other, a third
    none = results["scores"]["place"]["no_credit"]
    assert none["mean"] == pytest.approx(1.25 / 1.75)
    assert none["stderr"] == pytest.approx((1 - 1 / 3) / 2)
    # A prefix whose value is unknown takes the tokens before and after it with it, in the whole and in either half
    nan = math.nan
    for values, halves in (
        ([0.5, nan, 0.75, 1.0], None),
        ([0.5, 0.5, 0.75, 1.0], [[0.5, 0.5], [nan, 0.5], [0.75, 0.75], [1.0, 1.0]]),
    ):
        results, _ = made([valued(5, 0, 1.0, values, halves), *ROWS[1:]])
        found = results["scores"]["place"]["correlation"]["mean"]
        assert found == pytest.approx(np.corrcoef(true[2:], place[2:])[0, 1])
        assert results["notes"] == [
            "2 tokens have no true advantage, as no continuation had a reward: they are left out."
        ]


def test_gradients_need_two_groups_of_a_prompt():
    with pytest.raises(ValueError, match="No prompt has two groups with rewards"):
        made(ROWS[:2], gradients=True)
