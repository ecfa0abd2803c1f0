"""Files of a model: where they are, and what identifies them."""

import shutil

import numpy as np
import pytest
from helpers import prompts
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from trl_credit import model_files
from trl_credit.model_files import LocalModel, check_model


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


def test_an_adapter_beside_a_whole_model_is_told(tiny_model, lora_adapter, tmp_path, caplog):
    both = shutil.copytree(lora_adapter[0], tmp_path / "both")
    LocalModel.find(str(both))
    assert not caplog.records
    shutil.copy(f"{tiny_model}/model.safetensors", both)
    assert LocalModel.find(str(both)).adapter == str(both)
    assert "holds a whole model and an adapter: the adapter is loaded, on" in caplog.text


def test_large_files_are_read_in_blocks(tmp_path):
    from trl_credit.model_files import _BLOCK, _BLOCKS, _offsets

    size = 50 * _BLOCK * _BLOCKS + 17
    offsets = _offsets(size)
    assert (len(offsets), offsets[0], offsets[-1]) == (_BLOCKS, 0, size - _BLOCK)
    assert max(np.diff(offsets)) < size / (_BLOCKS - 2)
    small = 3 * _BLOCK + 5
    assert sum(min(_BLOCK, small - offset) for offset in _offsets(small)) == small


@pytest.fixture
def asked(monkeypatch):
    """(class, path, revision, True) of each `from_pretrained` with trust: those of ours, not those within transformers."""
    calls = []
    for kind in (AutoConfig, AutoTokenizer, AutoProcessor):
        original = kind.from_pretrained

        def recorded(path, *args, kind=kind, original=original, **kwargs):
            if kwargs.get("trust_remote_code"):
                calls.append((kind.__name__, path, kwargs.get("revision"), True))
            return original(path, *args, **kwargs | {"revision": None, "trust_remote_code": False})

        monkeypatch.setattr(kind, "from_pretrained", recorded)
    return calls


def test_revision_and_trust_reach_every_file(tiny_model, asked):
    LocalModel.find(tiny_model, "v2", True)
    check_model(tiny_model, prompts(2), "v3", True)
    assert asked == [
        ("AutoConfig", tiny_model, "v2", True),
        ("AutoTokenizer", tiny_model, "v2", True),
        ("AutoConfig", tiny_model, "v3", True),
        ("AutoProcessor", tiny_model, "v3", True),
    ]


def test_the_revision_is_the_adapters(tiny_model, lora_adapter, asked, monkeypatch):
    """Its base model has revisions of its own."""
    monkeypatch.setattr(model_files, "base_of_adapter", lambda path, revision, field: tiny_model)
    LocalModel.find(lora_adapter[0], "v2", True)
    assert asked[0] == ("AutoConfig", tiny_model, None, True)
    assert asked[1] == ("AutoTokenizer", lora_adapter[0], "v2", True)
    assert asked[2:] == [("AutoTokenizer", tiny_model, None, True)]  # the adapter has none


@pytest.mark.parametrize("field", ["model", "reference"])
def test_an_adapter_where_a_whole_model_must_be(field, lora_adapter):
    with pytest.raises(
        ValueError, match=rf"`{field}`: .* is an adapter, and this must be a whole model: merge it first"
    ):
        LocalModel.find(lora_adapter[0], field=field, adapter=False)


def test_a_processor_that_cannot_be_loaded_names_the_model(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"`model_name_or_path`: .* is neither a folder with a model"):
        check_model(str(tmp_path / "model"), prompts(2))
