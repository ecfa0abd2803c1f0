"""GPUs by name."""

import pytest

from trl_credit.planning.cards import CARDS, card_of


def test_names():
    assert card_of("h100") is CARDS["h100"]
    assert card_of(" RTX 4090") is CARDS["rtx-4090"]
    assert all(name == card.name for name, card in CARDS.items())


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("rtx_4090_24gb", "rtx-4090"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_names_as_torch_gives_them(name, card):
    assert card_of(name).name == card


@pytest.mark.parametrize("name", ["NVIDIA H100 NVL", "h100 94gb", "A100-SXM4-64GB", "v100", "Tesla V100-SXM2-32GB", ""])
def test_names_of_other_cards(name):
    with pytest.raises(ValueError, match="there is no card") as error:
        card_of(name)
    assert "v100" not in name.lower() or "Did you mean" not in str(error.value)


def test_memory_is_what_torch_reports():
    assert card_of("h100").memory == pytest.approx(84.9e9, rel=1e-3)
    assert card_of("a100-40gb").memory == pytest.approx(42.3e9, rel=1e-3)


def test_numbers():
    card = card_of("{memory: 80e9, flops: 1e15, bandwidth: 3e12, link: 9e11}")
    assert (card.memory, card.flops, card.bandwidth, card.link) == (80e9, 1e15, 3e12, 9e11)
    assert card_of({"memory": "24e9", "flops": 1, "bandwidth": 1, "link": 1, "name": "mine"}).name == "mine"


def test_collectives():
    card = card_of("h100")
    assert card.collective(8, 8) == pytest.approx(300e9)
    assert card.collective(16, 8) == 40e9
    assert card_of("l4").collective(16, 8) == pytest.approx(64e9 / 3)  # not faster than within a machine


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("h1000", "there is no card 'h1000'. Did you mean 'h100"),
        ("a100", "Did you mean 'a100-"),
        ("{memory: 80e9}", "`flops` is missing"),
        ("{memory: 80e9, flop: 1}", "no number 'flop'. Did you mean 'flops'"),
        ("{memory: 80e9, flops: fast, bandwidth: 1, link: 1}", "`flops` must be a positive number, got 'fast'"),
        ("{memory: 80e9, flops: -1, bandwidth: 1, link: 1}", "`flops` must be a positive number, got -1"),
        ("{memory: 80e9, flops: .nan, bandwidth: 1, link: 1}", "`flops` must be a positive number"),
        ("{memory: 80e9, flops: true, bandwidth: 1, link: 1}", "`flops` must be a positive number, got True"),
        ("{memory: 80, flops: 1, bandwidth: 1, link: 1}", "`memory` is in bytes"),
        ("{memory: [", "`gpu`: not valid YAML"),
    ],
)
def test_errors(spec, message):
    with pytest.raises(ValueError, match="`gpu`") as error:
        card_of(spec)
    assert message in str(error.value)
