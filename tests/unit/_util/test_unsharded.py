"""Models that stay whole under ZeRO-3."""

import pytest
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from trl_credit._util.unsharded import unsharded


@pytest.fixture
def zero3():
    """As a run has it while its models load. transformers keeps a weak reference only."""
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    yield config
    unset_hf_deepspeed_config()


def test_sharding_stops_inside_and_goes_on_after(zero3):
    assert is_deepspeed_zero3_enabled()
    with unsharded():
        assert not is_deepspeed_zero3_enabled()
    assert is_deepspeed_zero3_enabled()
    with pytest.raises(OSError, match="no such model"), unsharded():
        raise OSError("no such model")
    assert is_deepspeed_zero3_enabled()


def test_without_deepspeed():
    with unsharded():
        assert not is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()
