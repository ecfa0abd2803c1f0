"""Drifted policies."""

import pytest

from trl_credit.bench.sweeps import drifted_policies
from trl_credit.model_files import embedded_model_path


@pytest.mark.slow
def test_drift_is_kept_and_deterministic(tmp_path):
    model_path = embedded_model_path()  # a random one earns no reward, and nothing would be trained
    first = drifted_policies(model_path, (0, 1, 2), tmp_path / "a", seed=0, num_completions=8)
    assert first[0] == {"path": model_path, "reward": None}
    assert drifted_policies(model_path, (0, 1, 2), tmp_path / "b", 0, 8)[2]["reward"] == first[2]["reward"]
    weights = [(tmp_path / folder / "after-2" / "model.safetensors").read_bytes() for folder in "ab"]
    assert weights[0] == weights[1]
    written = (tmp_path / "a" / "after-2" / "model.safetensors").stat().st_mtime_ns
    assert drifted_policies(model_path, (0, 1, 2), tmp_path / "a", 0, 8) == first
    assert (tmp_path / "a" / "after-2" / "model.safetensors").stat().st_mtime_ns == written
    drifted_policies(model_path, (0, 1, 2), tmp_path / "a", 1, 8)
    assert (tmp_path / "a" / "after-2" / "model.safetensors").stat().st_mtime_ns != written
