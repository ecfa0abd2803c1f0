"""Fingerprints of models."""

import shutil

import numpy as np

from trl_credit.model_files import LocalModel


def test_fingerprints(tiny_model, lora_adapter, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    first = LocalModel.find(tiny_model).fingerprint()
    assert LocalModel.find(str(copy)).fingerprint() == first  # wherever it lies
    (copy / "README.md").write_text("x")
    (copy / "trainer_state.json").write_text("{}")
    (copy / "run.json").write_text("{}")
    assert LocalModel.find(str(copy)).fingerprint() == first
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert LocalModel.find(str(copy)).fingerprint() != first
    template = shutil.copytree(tiny_model, tmp_path / "template")
    (template / "chat_template.jinja").write_text("{{ messages }}")
    assert LocalModel.find(str(template)).fingerprint() != first
    assert LocalModel.find(lora_adapter[0]).fingerprint()["model"] == first["model"]


def test_large_files_are_read_in_blocks(tmp_path):
    from trl_credit.model_files import _BLOCK, _BLOCKS, _offsets

    size = 50 * _BLOCK * _BLOCKS + 17
    offsets = _offsets(size)
    assert (len(offsets), offsets[0], offsets[-1]) == (_BLOCKS, 0, size - _BLOCK)
    assert max(np.diff(offsets)) < size / (_BLOCKS - 2)
    small = 3 * _BLOCK + 5
    assert sum(min(_BLOCK, small - offset) for offset in _offsets(small)) == small
