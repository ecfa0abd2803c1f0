"""Comparisons of two evaluations."""

import json

import pytest
from support.evaluation import FakeBackend, config

from trl_credit._util.files import RunFolderError
from trl_credit.evaluation import evaluate
from trl_credit.evaluation.compare import compare_runs


# ---- comparison


@pytest.fixture
def two_runs(sums, tmp_path):
    for name, rate in (("a", 0.1), ("b", 0.75)):
        evaluate(config(sums, tmp_path, model=name, n=24, output_dir=str(tmp_path / name)), FakeBackend(name, rate))
    return tmp_path / "a", tmp_path / "b"


def test_comparing_two_runs(two_runs):
    found = compare_runs(*two_runs)
    part = found["tasks"]["sums"]
    averages = [json.loads((path / "results.json").read_text())["overall"]["avg"] for path in two_runs]
    assert (part["a_avg"], part["b_avg"]) == pytest.approx(tuple(averages))
    assert part["difference"] == pytest.approx(averages[1] - averages[0])
    assert 0 < part["low"] < part["difference"] < part["high"] < 1
    assert found["overall"]["difference"] == pytest.approx(part["difference"])
    assert {row["moved"] for row in part["per_problem"]} == {"up"}
    assert part["per_problem"][0]["question"] == "0+1 ="
    assert found["differences"] == []
    same = compare_runs(two_runs[0], two_runs[0])["tasks"]["sums"]
    assert (same["difference"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)


def test_comparing_what_cannot_be_compared(two_runs, tmp_path, sums):
    with pytest.raises(RunFolderError, match=r"There is no results.json"):
        compare_runs(two_runs[0], tmp_path)
    other = tmp_path / "other.jsonl"
    other.write_text('{"problem": "1+1", "answer": "2"}\n')
    evaluate(config(str(other), tmp_path, output_dir=str(tmp_path / "c")), FakeBackend())
    with pytest.raises(ValueError, match="no task in common"):
        compare_runs(two_runs[0], tmp_path / "c")
    evaluate(config(f"sums={other}", tmp_path, output_dir=str(tmp_path / "d")), FakeBackend())
    with pytest.raises(ValueError, match=r"not the same in the two runs .6 and 1."):
        compare_runs(two_runs[0], tmp_path / "d")
    evaluate(config(sums, tmp_path, top_p=1.0, n=3, output_dir=str(tmp_path / "e")), FakeBackend())
    fields = {row["field"] for row in compare_runs(two_runs[0], tmp_path / "e")["differences"]}
    assert fields == {"sampling.top_p", "n"}
    evaluate(config(sums, tmp_path, tasks=[sums, str(other)], n=24, output_dir=str(tmp_path / "f")), FakeBackend())
    more = compare_runs(two_runs[0], tmp_path / "f")
    assert (more["left_out"], more["differences"]) == (["other"], [])
