"""The prompt stream follows TRL's order."""

import collections

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rollout import trl_order

from trl_credit.extras.prompt_stream import PromptStream


def stream(size, batch_size=3, shuffle=True, seed=5, iterable=False):
    dataset = Dataset.from_dict({"prompt": [str(i) for i in range(size)]})
    if iterable:
        dataset = dataset.to_iterable_dataset()
    return PromptStream(dataset, batch_size=batch_size, shuffle=shuffle, seed=seed)


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_stream_is_trls_order(shuffle):
    ours = stream(11, shuffle=shuffle)
    expected = trl_order(11, 3, shuffle, 5, passes=4)
    assert [i for _ in range(12) for i in ours.draw(3)] == expected
    assert ours.passes == 4.0


@given(st.integers(3, 12), st.integers(1, 3), st.lists(st.integers(0, 5), max_size=12), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_prompt_twice_in_a_pass_or_a_batch(size, batch_size, extra, seed):
    """Batches, each with some more prompts drawn for it."""
    ours = stream(size, batch_size, seed=seed)
    order = trl_order(size, batch_size, True, seed, passes=60)
    drawn = []
    for more in extra:
        batch = ours.draw(batch_size)
        batch += ours.draw(more, batch)
        assert len(set(batch)) == len(batch)
        assert len(batch) >= min(batch_size, size)
        drawn += batch
        # As often as in the passes begun, less what waits
        counts = collections.Counter(drawn)
        counts.update(ours.state_dict()["deferred"])
        assert counts == collections.Counter(order[: sum(counts.values())])


@pytest.mark.parametrize("iterable", [False, True])
def test_the_stream_goes_on_where_it_was(iterable):
    ours = stream(11, iterable=iterable)
    row = (lambda x: x["prompt"]) if iterable else (lambda x: x)
    tried = [0, 1, 2, 3, 4]
    for _ in range(7):
        other = stream(11, iterable=iterable)
        other.load_state_dict(ours.state_dict())
        assert other.state_dict() == ours.state_dict()
        expected = [[row(x) for x in other.draw(n, tried)] for n in (4, 3, 5)]
        assert [[row(x) for x in ours.draw(n, tried)] for n in (4, 3, 5)] == expected
        assert other.passes == ours.passes


def test_another_data_set_is_begun_anew(caplog):
    state = stream(11).state_dict()
    other = stream(12)
    other.load_state_dict(state | {"position": 6})
    assert "now has 12 rows (checkpoint: 11)" in caplog.text
    assert other.state_dict()["position"] == 0
