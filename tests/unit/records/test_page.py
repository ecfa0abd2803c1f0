"""The page of credit records."""

import json
import math
import re
import warnings
import zlib
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest
from support.credit_report import about, awkward_records, make_record
from support.evaluation_runs import HOSTILE, words

from trl_credit.records.page import number, pack, write_credit_report


TOKENS = ["To", " add", " 83", " and", " ", "4", "8", "\n", "\n\n", "\t", "<script>alert(1)</script>", " x", "<0xE4>",
          "語", " 🙂", "שלום", " \\boxed{", "145", "}", "<|im_end|>"]  # fmt: skip

ADVICE = "lower `temperature` to about 0.002, or use `temperature: adaptive`"


# ---- Pages, pictures and terminals


def unpack(data, count):
    """What the page's script reads of a packed record."""
    line, _, rest = data.partition(b"\n")
    header = json.loads(line)
    ids = np.frombuffer(rest[: 4 * count], np.uint8).reshape(4, count).T.copy().view("<u4")[:, 0]
    mask = np.frombuffer(rest[4 * count : 5 * count], np.uint8)
    planes = np.frombuffer(rest[5 * count :], np.uint8).reshape(len(header["arrays"]), 4, count)
    arrays = [plane.T.copy().view("<f4")[:, 0] for plane in planes]
    return header, ids, mask, dict(zip(header["arrays"], arrays, strict=True))


def test_records_are_packed_to_three_digits():
    record = make_record(masked=(2, 3), seed=4)
    values = record.weights["gcpo"].copy()
    values[:4] = [0, math.inf, math.nan, 1e-30]
    record = replace(
        record,
        weights=record.weights | {"odd": values},
        token_advantages=record.token_advantages | {"odd": values, "own": np.arange(len(TOKENS), dtype=np.float32)},
    )
    header, ids, mask, arrays = unpack(pack(record), len(TOKENS))
    assert header["tokens"] == TOKENS
    assert header["products"] == ["uniform", "gcpo", "dgpo"]
    assert ids.tolist() == record.token_ids.tolist()
    assert mask.astype(bool).tolist() == record.mask.tolist()
    expected = {"logps": record.logps, "entropy": record.entropy, "weight/odd": values, "advantage/odd": values}
    expected |= {f"signal/{title}": signal for title, signal in record.signals.items()}
    expected |= {f"weight/{label}": weights for label, weights in record.weights.items()}
    assert set(arrays) == set(expected) | {"advantage/own"}
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1.3e-4, err_msg=name)


def test_page(tmp_path):
    path = tmp_path / "deep" / "credit.html"
    records = [make_record(seed=k) for k in range(3)]
    write_credit_report(path, iter(records), about())
    text = path.read_text("utf-8")
    assert list(path.parent.iterdir()) == [path]
    assert "unsafe" not in text
    assert "style=" not in text
    assert not re.search(r"""(src|href)=["']""", text)
    said = words(path)
    assert "uniform gives every token the same weight." in said
    assert re.search(
        r"dgpo is uniform here: effective fraction 0\.999\d; lower temperature to about 0\.002, or use", said
    )
    assert "gcpo puts half of the weight on" in said
    assert "never shown" not in said
    assert "3 completions, 60 tokens" in said
    assert "gcpo.temperature 1.0" in said
    packed = re.findall(r'id="text-\d+">(.*?)<', text)
    assert [unpack(zlib.decompress(b64decode(part)), 20)[0]["tokens"] for part in packed] == [TOKENS] * 3


def test_page_has_token_advantages_of_methods_without_weights(tmp_path):
    record = make_record(advantage=1.0)
    write_credit_report(tmp_path / "weights.html", [record], {})
    assert "Token advantages" not in words(tmp_path / "weights.html")
    term = np.linspace(-2, 3, len(TOKENS), dtype=np.float32)
    record = replace(record, token_advantages=record.token_advantages | {"teacher": term})
    write_credit_report(tmp_path / "term.html", [record], {})
    said = words(tmp_path / "term.html")
    assert re.search(r"Token advantages .* teacher 1\.3\d 1\.3\d 40\.0 % \u22122 3 1 ", said)
    assert "by token advantage" in said


@pytest.mark.parametrize("records", [[], awkward_records(), awkward_records()[:2], awkward_records()[3:4]])
def test_awkward_records_make_a_page(tmp_path, records):
    path = tmp_path / "credit.html"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_credit_report(path, records, about(title=HOSTILE, methods={HOSTILE: {HOSTILE: HOSTILE}}))
        write_credit_report(tmp_path / "bare.html", records, {})
    text = path.read_text("utf-8")
    assert "<script>alert" not in text
    assert "<img" not in text
    page = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(None|NaN|nan|undefined|Undefined|inf)\b", page)
    assert "\u202e" not in text.split('id="data"')[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (0, "0"), (1.0, "1"), (0.12345, "0.123"), (-1234.5, "−1234"), (9999, "9999"),  # noqa: RUF001
     (12345, "1.23e+04"), (0.00012, "1.20e−04")],  # noqa: RUF001
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text
