"""Completions read from files."""

import json

import pandas as pd
import pytest
from support.image_credit import make_image

from trl_credit._util.files import to_line
from trl_credit.evaluation.store import checksum
from trl_credit.inspection.sources import read_completions
from trl_credit.records.images import write_parquet


# Sources


def test_completions_from_files(tmp_path):
    rows = [
        {"prompt": "1+1=", "completion": "2", "reward": 1.0, "advantage": 0.5},
        {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]},
        {"prompt": "1+1=", "token_ids": [4, 5], "mask": [True, False], "group": 9},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        first, second, third = read_completions(str(tmp_path / name), 10)[0]
        assert (first.text, first.reward, first.advantage) == ("2", 1.0, 0.5)
        assert (second.text, second.prompt) == ("yo", rows[1]["prompt"])
        assert (third.token_ids, third.mask, third.group) == ([4, 5], [True, False], 9)
    assert len(read_completions(str(tmp_path / "a.json"), 2)[0]) == 2
    # TRL's table: rewards under their functions' names
    (tmp_path / "run" / "completions").mkdir(parents=True)
    table = {"step": [5], "prompt": ["a="], "completion": ["b"], "letters": [0.25], "advantage": [-1.0]}
    pd.DataFrame(table).to_parquet(tmp_path / "run" / "completions" / "completions_00005.parquet")
    (only,) = read_completions(str(tmp_path / "run"), 10)[0]
    assert (only.reward, only.advantage, only.info) == (0.25, -1.0, {"step": 5, "rewards": {"letters": 0.25}})
    table |= {"credit/effective_fraction": [0.5], "answer": [42.0]}
    order = ["step", "prompt", "completion", "letters", "credit/effective_fraction", "advantage", "answer"]
    pd.DataFrame(table)[order].to_parquet(tmp_path / "run" / "completions" / "completions_00006.parquet")
    for name in ("run", "run/completions"):
        (only,) = read_completions(str(tmp_path / name), 10)[0]
        assert (only.reward, only.info) == (0.25, {"step": 5, "rewards": {"letters": 0.25}})
    # Nothing was generated
    (tmp_path / "none.json").write_text(json.dumps([{"prompt": "a", "completion": "", "token_ids": [], "mask": []}]))
    (only,) = read_completions(str(tmp_path / "none.json"), 10)[0]
    assert (only.token_ids, only.text) == ([], None)
    # An evaluation
    (tmp_path / "eval").mkdir()
    sample = {"task": "t", "problem": 0, "index": 0, "seed": 1, "text": "4", "finish": "length", "correct": True}
    (tmp_path / "eval" / "samples.jsonl").write_text(to_line(sample))
    (tmp_path / "eval" / "problems.jsonl").write_text(to_line({"task": "t", "problem": 0, "prompt": "2+2="}))
    (only,) = read_completions(str(tmp_path / "eval"), 10)[0]
    assert (only.prompt, only.text, only.finished, only.reward) == ("2+2=", "4", False, 1.0)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "no.jsonl", "there is no file or folder"),
        ("", "x.csv", "must be a folder or end in"),
        ("", "x.jsonl", "holds no completions"),
        ("{", "x.json", "line 1, is not JSON"),
        ('{"prompt": "a", "completion": "b"}\n\n{"prompt"', "x.jsonl", "line 3, is not JSON"),
        ("[1]", "x.json", "must hold a list of objects"),
        ('[{"completion": "a"}]', "x.json", "row 1 of .* has no `prompt`, but completion: rename"),
        ('[{"prompt": "a"}]', "x.json", "neither `completion` nor `token_ids`"),
        ('[{"prompt": "a", "completion": 3}]', "x.json", "neither text nor a message"),
        ("no", "x.parquet", "cannot read"),
        (
            '[{"prompt": "a", "token_ids": [3, -1]}]',
            "x.json",
            "row 1 .*`token_ids` must be whole numbers from 0; number 2 is -1",
        ),
        ('[{"prompt": "a", "token_ids": [1.5]}]', "x.json", r"number 1 is 1\.5"),
        ('[{"prompt": "a", "token_ids": [true]}]', "x.json", "number 1 is True"),
        ('[{"prompt": "a", "completion_ids": ["b"]}]', "x.json", "number 1 is 'b'"),
        ('[{"prompt": "a", "token_ids": 5}]', "x.json", "must be a list of token ids, got 5"),
        ('[{"prompt": "a", "token_ids": [1], "mask": [2]}]', "x.json", "`mask` must be a list of 0 and 1"),
        ('[{"prompt": 5, "completion": "b"}]', "x.json", "`prompt` holds a number"),
        ('[{"prompt": {"text": "a"}, "completion": "b"}]', "x.json", "such as prompt.text"),
        ('[{"prompt": [], "completion": "b"}]', "x.json", "has no `prompt`: it is an empty list"),
        ('[{"prompt": "a", "completion": "b", "advantage": "high"}]', "x.json", "`advantage` must be a finite number"),
        ('[{"prompt": "a", "completion": "b", "reward": Infinity}]', "x.json", "`reward` must be a finite number"),
        (
            '[{"prompt": "a", "completion": "b", "reward": [1, "x"]}]',
            "x.json",
            r"`reward\[1\]` must be a finite number",
        ),
        ('[{"prompt": "a", "completion": "b", "group": 1.5}]', "x.json", "`group` must be a whole number"),
        ('[{"prompt": "a", "completion": "b", "finished": "no"}]', "x.json", "`finished` must be a boolean"),
        ("[" * 100_000, "x.json", "cannot be read as JSON"),
        (b"\xff", "x.json", "is not UTF-8"),
    ],
)
def test_bad_files(content, name, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        read_completions(str(tmp_path / name), 10)
    with pytest.raises(ValueError, match=r"has no samples.jsonl"):
        read_completions(str(tmp_path), 10)


def test_damaged_samples_are_left_out(tmp_path, caplog):
    sample = {"task": "t", "problem": 0, "index": 0, "seed": 1, "text": "4", "finish": "stop", "tokens": 1}
    changed = {**sample, "index": 1, "checksum": checksum(sample)}
    (tmp_path / "problems.jsonl").write_text(to_line({"task": "t", "problem": 0, "prompt": "2+2="}) + '{"task": "t"}\n')
    (tmp_path / "samples.jsonl").write_text(to_line(changed) + "[" * 100_000 + "\n" + to_line({"task": "t"}))
    with pytest.raises(ValueError, match=r"holds no samples that are whole"):
        read_completions(str(tmp_path), 10)
    with open(tmp_path / "samples.jsonl", "a") as file:
        file.write(to_line(sample | {"checksum": checksum(sample)}))
    (only,) = read_completions(str(tmp_path), 1)[0]
    assert only.text == "4"
    assert "2 damaged sample(s) are left out" in caplog.text
    (tmp_path / "problems.jsonl").unlink()
    with pytest.raises(ValueError, match=r"problems.jsonl' has none of the samples' problems"):
        read_completions(str(tmp_path), 1)


def test_image_credit_has_a_page(tmp_path):
    (tmp_path / "credit").mkdir()
    write_parquet(tmp_path / "credit" / "step-000005.parquet", [make_image()])
    with pytest.raises(ValueError, match=r"has the credit of images, .* the page beside it, step-000005\.html"):
        read_completions(str(tmp_path), 10)
