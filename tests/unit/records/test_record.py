"""Credit records and their files."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inspection import record

from trl_credit._util.tokens import token_pieces
from trl_credit.records.record import (
    from_table,
    read_parquet,
    to_json,
    to_table,
    write_parquet,
)
from trl_credit.toy.build_model import build_tokenizer


def test_records_survive_a_file(tmp_path):
    records = [
        record(signals={"s": np.array([0.5, math.nan, math.inf], np.float32)}, advantage=-1.5, reward=0.0, group=7),
        record(0, weights={"b": np.zeros(0, np.float32)}),
        record(
            1, weights={}, tokens=["\ud800"], prompt="é\u2028<b>", info={"step": 3, "source_prompt": [{"role": "user"}]}
        ),
    ]
    write_parquet(tmp_path / "x.parquet", records, {"step": 3})
    back, about = read_parquet(tmp_path / "x.parquet")
    assert about == {"step": 3}
    for old, new in zip(records, back, strict=True):
        assert (old.advantage, old.reward, old.group, dict(old.info)) == (
            new.advantage,
            new.reward,
            new.group,
            new.info,
        )
        assert set(old.weights) == set(new.weights)
        for name in old.weights:
            np.testing.assert_array_equal(old.weights[name], new.weights[name])
        for name in old.signals:
            np.testing.assert_array_equal(old.signals[name], new.signals[name])
    unscored = record(reward=math.nan, info={"rewards": {"f": math.nan}})
    json.dumps([to_json(r) for r in [*records, unscored]], allow_nan=False)
    write_parquet(tmp_path / "y.parquet", [unscored])
    assert read_parquet(tmp_path / "y.parquet")[0][0].info == {"rewards": {"f": None}}
    assert from_table(to_table([])) == ([], {})
    # Also for those who know nothing of this package
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert frame["weight/a"][0].tolist() == [1.0, 1.0, 1.0]


def test_records_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"weights\['a'\] has shape \(2,\), but there are 3 tokens"):
        record(weights={"a": np.ones(2)})
    pd.DataFrame({"prompt": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no table of token credit: it has no column 'completion'"):
        read_parquet(tmp_path / "other.parquet")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(ValueError, match="Cannot read"):
        read_parquet(tmp_path / "bad.parquet")


def test_pieces_of_characters():
    tokenizer = build_tokenizer()
    # This vocabulary has ASCII only; the bytes of é and 語 are unknown to it
    assert token_pieces(tokenizer, tokenizer("a b\n")["input_ids"]) == ["a", " ", "b", "\n"]
    assert token_pieces(tokenizer, [tokenizer.eos_token_id, 10]) == ["<eos>", tokenizer.decode([10])]
    assert token_pieces(tokenizer, []) == []


def byte_tokenizer():
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {character: i for i, character in enumerate(bytes_to_unicode().values())}
    return Qwen2Tokenizer(vocab=vocabulary | {"<eos>": 256}, merges=[], eos_token="<eos>", unk_token="<eos>")


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Co"]), max_size=12))
def test_bytes_of_a_character_are_shown(text):
    """A token for each byte: the last byte's token shows the character, those before it their bytes."""
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = token_pieces(tokenizer, ids)
    expected = []
    for character in tokenizer.decode(ids):  # its normaliser composes accents
        encoded = character.encode()
        expected += [*[f"<0x{byte:02X}>" for byte in encoded[:-1]], character]
    assert pieces == expected
