"""A second model and records to inspect."""

import numpy as np
import pytest
from helpers import save_tiny_model

from trl_credit.records.record import (
    CompletionCredit,
)


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}

FULL = {**GCPO, "divergence": "full"}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


# Records


def record(length=3, **changes):
    arrays = {"mask": np.ones(length, bool), "logps": -np.arange(length, dtype=np.float32)}
    fields = {
        "prompt": "p",
        "completion": "c",
        "tokens": [f"t{i}" for i in range(length)],
        "token_ids": np.arange(length),
        "entropy": np.ones(length, np.float32),
        "weights": {"a": np.ones(length, np.float32)},
    }
    return CompletionCredit(**(arrays | fields | changes))
