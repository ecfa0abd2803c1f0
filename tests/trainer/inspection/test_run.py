"""`trl-credit inspect`, end to end."""

import json

import numpy as np

from trl_credit.inspection import cli, scoring
from trl_credit.records.record import (
    read_parquet,
)


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}

SHARP = {"method": "dgpo", "temperature": 0.01}


def test_the_command(tiny_model, other_model, tmp_path, capsys):
    arguments = [
        "--model",
        tiny_model,
        "--prompts",
        "1+1=",
        "ab=",
        "--num_generations",
        "2",
        "--max_completion_length",
        "5",
    ]
    arguments += ["--methods", "uniform", json.dumps(SHARP), "--reference", other_model, "--plain_prompts", "true"]
    cli.main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert "credit.html, credit.parquet, credit.json" in capsys.readouterr().out
    records, about = read_parquet(tmp_path / "out" / "credit.parquet")
    assert [record.prompt for record in records] == ["1+1=", "1+1=", "ab=", "ab="]
    assert about["methods"]["dgpo"]["reference"] == other_model
    assert json.loads((tmp_path / "out" / "credit.json").read_text())["completions"][0]["tokens"] == records[0].tokens
    assert "uniform" in (tmp_path / "out" / "credit.html").read_text()
    # What was written is shown again without a model, and scored again with one
    cli.main(["--completions", str(tmp_path / "out"), "--output_dir", str(tmp_path / "again"), "--show", "0"])
    again, _ = read_parquet(tmp_path / "again" / "credit.parquet")
    np.testing.assert_array_equal(again[0].weights["dgpo"], records[0].weights["dgpo"])
    arguments = ["--completions", str(tmp_path / "out"), "--model", tiny_model, "--methods", json.dumps(GCPO)]
    cli.main([*arguments, "--output_dir", str(tmp_path / "scored"), "--show", "0"])
    scored, _ = read_parquet(tmp_path / "scored" / "credit.parquet")
    assert list(scored[0].weights) == ["gcpo"]
    np.testing.assert_allclose(scored[0].logps, records[0].logps, atol=1e-5)


def test_messages_where_the_tokenizer_has_a_template(tiny_model, tmp_path):
    arguments = ["--model", tiny_model, "--prompts", "hi", "--num_generations", "2", "--max_completion_length", "3"]
    cli.main([*arguments, "--methods", "uniform", "--output_dir", str(tmp_path), "--show", "0"])
    records, _ = read_parquet(tmp_path / "credit.parquet")
    assert records[0].prompt == "user:hi;assistant:"
    assert records[0].info["source_prompt"] == [{"role": "user", "content": "hi"}]


def test_all_completions_are_one_generation_batch(tiny_model, tmp_path, monkeypatch):
    """However little fits in a forward: a baseline from other groups has them all."""
    path = tmp_path / "x.jsonl"
    rows = [
        {
            "prompt": f"{group}+1=",
            "completion": "ab1+" if place % 3 == 0 else "a",
            "reward": float(place % 3 == 0),
            "advantage": 1.0,
        }
        for group in range(4)
        for place in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for tokens in (scoring.TOKENS_PER_BATCH, 30):
        monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", tokens)
        out = tmp_path / str(tokens)
        words = ["--completions", str(path), "--model", tiny_model, "--methods", "certainty", "--output_dir", str(out)]
        cli.main([*words, "--plain_prompts", "true", "--show", "0"])
        found.append(read_parquet(out / "credit.parquet")[0])
    for whole, small in zip(*found, strict=True):
        np.testing.assert_allclose(
            small.token_advantages["certainty"], whole.token_advantages["certainty"], rtol=1e-4, atol=1e-5
        )
