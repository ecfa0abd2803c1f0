"""Traffic by layout and the rollout's time, against arithmetic by hand."""

from dataclasses import replace

import pytest

from trl_credit.planning.cards import CARDS, DECODING_SHARE, card_of
from trl_credit.planning.engine import Engine, own_engine
from trl_credit.planning.layouts import LAYOUTS
from trl_credit.planning.sizes import Model
from trl_credit.planning.work import Pass, Update, loss_flops, received_bytes, rollout_seconds, update_seconds


SMALL = Model.dense("small", 4, 64, 160, 4, 2, 1000, 16)
SEVEN = Model.dense("7b", 28, 3584, 18944, 28, 4, 152064)
N = SMALL.parameters
H100 = CARDS["h100"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one", 0),
        ("ddp", 2 * 8 * N),  # float32, twice, once per optimizer step
        ("zero2", 6 * 2 * N + 2 * 2 * N),  # each micro-batch, and the weights after each step
        ("zero3", 6 * 3 * 2 * N),
        ("fsdp2", 6 * 2 * 2 * N + 2 * 2 * N),
    ],
)
def test_traffic_of_the_loss(name, expected):
    """Two optimizer steps of three micro-batches, on four GPUs."""
    gpus = 1 if name == "one" else 4
    found = received_bytes(SMALL, Update(steps=2), [], LAYOUTS[name], gpus, 6)["loss"]
    assert found == pytest.approx(expected * (gpus - 1) / gpus)


def test_traffic_of_the_old_logps():
    """One more gathering, whatever the iterations."""
    plain = received_bytes(SMALL, Update(iterations=3), [], LAYOUTS["zero3"], 4, 6)["loss"]
    assert plain == 0.75 * 2 * N * 6 * (3 * 3 + 1)
    assert received_bytes(SMALL, Update(old_logps=True), [], LAYOUTS["zero2"], 4, 6) == received_bytes(
        SMALL, Update(), [], LAYOUTS["zero2"], 4, 6
    )


def test_traffic_of_passes():
    update = Update(iterations=3)
    both = [
        received_bytes(SMALL, update, [Pass("", repeated=on)], LAYOUTS["fsdp2"], 4, 2)["credit"] for on in (True, False)
    ]
    assert both[0] == 3 * both[1] == 3 * 2 * 1.5 * N
    assert received_bytes(SMALL, update, [Pass("")], LAYOUTS["ddp"], 4, 2)["credit"] == 0
    compared = Pass("", compares=True)
    kept, half = (
        received_bytes(SMALL, replace(update, kept=share), [compared], LAYOUTS["zero3"], 4, 1)["credit"]
        for share in (1, 0.5)
    )
    assert half - kept == 1.5 * N


def test_traffic_of_adapters():
    adapters = received_bytes(SMALL, Update(), [], LAYOUTS["zero3"], 4, 1, trained=0)["loss"]
    assert adapters == 2 / 3 * received_bytes(SMALL, Update(), [], LAYOUTS["zero3"], 4, 1)["loss"]


def test_adapters_save_no_product_of_attention():
    """Of a weight's three products one goes; attention's stay."""
    update = Update(prompt=50, completion=100, completions=1)
    saved = loss_flops(SMALL, update) - loss_flops(SMALL, replace(update, adapters=True))
    assert saved == 2 * SMALL.backbone * 150 + SMALL.head_flops(100)


def test_the_slower_network_counts_between_machines():
    update = Update(prompt=1, completion=1, completions=16)
    near, far = (
        update_seconds(SEVEN, update, [], H100, LAYOUTS["zero3"], 16, 1, per_machine)["loss"] for per_machine in (16, 8)
    )
    assert far == pytest.approx(near * 300 / 40)


# The engine


def test_cache_of_an_engine():
    engine = Engine(8, 2, 0.4)
    assert engine.engines == 4
    assert engine.cache(SEVEN, H100) == pytest.approx(0.9 * 0.4 * 2 * H100.memory - 2 * SEVEN.parameters)
    packed = replace(engine, bits=4).cache(SEVEN, H100) - engine.cache(SEVEN, H100)
    assert packed == pytest.approx((2 - 0.5625) * SEVEN.linear)


def test_completions_at_a_time():
    engine = Engine(8, 1, 0.4)
    assert engine.concurrent(SEVEN, H100, 8704) == int(engine.cache(SEVEN, H100) / (8704 * 57344)) == 30
    assert engine.concurrent(SEVEN, H100, 10) == 256
    assert Engine(8, 1, 0.1).concurrent(SEVEN, H100, 8704) == 1  # it does not fit, and the time stays a number


def test_an_engine_needs_room_for_one_sequence():
    longest = int(Engine(8, 1, 0.4).cache(SEVEN, H100) // SEVEN.kv_bytes)
    assert Engine(8, 1, 0.4).fits(SEVEN, H100, longest)
    assert not Engine(8, 1, 0.4).fits(SEVEN, H100, longest + 1)
    assert not Engine(1, 2).fits(SMALL, H100, 1)  # more GPUs for a copy than there are


def test_an_engine_of_its_own_takes_as_many_gpus_as_a_copy_needs():
    large = Model.dense("72b", 80, 8192, 29568, 64, 8, 152064)
    assert [own_engine(model, H100, 8, 4096).split for model in (SEVEN, large)] == [1, 4]
    assert own_engine(large, card_of("rtx-4090"), 4, 4096).split == 4
    assert not own_engine(large, card_of("rtx-4090"), 4, 4096).fits(large, card_of("rtx-4090"), 4096)


def test_seconds_of_a_rollout():
    """By hand: 64 completions on 2 engines are one wave of 32; with a small cache, several."""
    update = Update(prompt=100, completion=1000, completions=64)
    read = 2 * SEVEN.parameters + 32 * 600 * SEVEN.kv_bytes
    engine = Engine(8, 4)
    assert rollout_seconds(SEVEN, update, H100, engine) == pytest.approx(
        1000 * read / (4 * H100.bandwidth * DECODING_SHARE)
    )
    small = Engine(2, 1, (2 * SEVEN.parameters + 8.5 * 1100 * SEVEN.kv_bytes) / 0.9 / H100.memory)
    read = 2 * SEVEN.parameters + 8 * 600 * SEVEN.kv_bytes
    assert rollout_seconds(SEVEN, update, H100, small) == pytest.approx(
        4 * 1000 * read / (H100.bandwidth * DECODING_SHARE)
    )
