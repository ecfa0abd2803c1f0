"""The report of an evaluation."""

import base64
import errno
import random
import re
import zlib
from pathlib import Path

import pytest
from support.evaluation_runs import (
    hostile_comparison,
    hostile_evaluation,
    make_comparison,
    make_evaluation,
    words,
)

from trl_credit._util.files import RunFolderError, read_lines
from trl_credit.evaluation import page as evaluation
from trl_credit.evaluation.compare_page import plot_comparison, write_comparison_report
from trl_credit.evaluation.page import write_evaluation_report
from trl_credit.evaluation.store import read_results
from trl_credit.report.page import duration


@pytest.mark.parametrize("kind", ["evaluation", "comparison"])
def test_hostile_text_stays_text(tmp_path, kind):
    path = tmp_path / "deep" / "report.html"
    if kind == "evaluation":
        write_evaluation_report(path, **hostile_evaluation())
    else:
        write_comparison_report(path, hostile_comparison())
    page = path.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img" not in page
    assert not re.search("[\x00\u202e]", page.replace("\\u0000", "").split('id="data"')[0])
    assert page.count("Content-Security-Policy") == 1
    assert "default-src 'none'" in page
    assert "unsafe-inline" not in page
    assert not re.search(r"""(src|href)=["']""", page)
    assert list(path.parent.iterdir()) == [path]


def test_nothing_missing_shows_as_a_word(tmp_path):
    data = make_evaluation(tasks=("aime24",), problems=2, n=2)
    metrics = data["results"]["tasks"]["aime24"]
    metrics |= {"stderr": None, "tokens": None, "pass": {"1": float("nan")}, "maj": {}, "truncated": None}
    metrics["per_problem"][0] |= {"accuracy": None, "mean_tokens": None, "majority": None, "correct": None}
    data["results"] |= {"session": None, "overall": {}, "model": None}
    for sample in data["samples"]:
        sample |= {"tokens": None, "seed": None}
    write_evaluation_report(tmp_path / "a.html", **data)

    comparison = make_comparison(sizes=(2,))
    comparison["tasks"]["aime24"] |= {"p_value": None, "low": None, "high": float("nan"), "a_avg": None}
    comparison["tasks"]["aime24"]["per_problem"][0] |= {"difference": None, "low": None, "question": None, "a_n": 0}
    comparison["overall"] = {}
    comparison["a"] = {}
    write_comparison_report(tmp_path / "b.html", comparison)
    plot_comparison(tmp_path / "b.png", comparison)

    write_comparison_report(tmp_path / "c.html", {"a": {}, "b": {}, "tasks": {}, "overall": {}})
    write_evaluation_report(tmp_path / "d.html", {"model": "m", "tasks": {}, "overall": {}}, [], [])
    for name in "abcd":
        page = re.sub(r"<(script|style).*?</\1>", "", (tmp_path / f"{name}.html").read_text("utf-8"), flags=re.DOTALL)
        assert not re.search(r"\b(None|NaN|nan|undefined|Undefined|inf)\b", page)
    assert "no standard error" in (tmp_path / "a.html").read_text("utf-8")


def test_the_longest_texts_are_cut_in_the_middle(tmp_path, monkeypatch):
    data = make_evaluation(tasks=("aime24",), problems=4, n=3)
    long = data["samples"][5]
    # Random digits hardly compress
    long["text"] = "BEGINNING" + "".join(random.Random(0).choices("0123456789", k=100_000)) + "END"
    assert evaluation._cut_longest([zlib.compress(b"x")], [{}], 100) == 0
    monkeypatch.setattr(evaluation, "TEXT_LIMIT", 20_000)
    write_evaluation_report(tmp_path / "cut.html", **data)
    page = (tmp_path / "cut.html").read_text("utf-8")
    assert "1 of 12 texts are cut in this report" in page
    assert page.count("left_out") == 1 + page.count("sample.left_out")
    texts = [zlib.decompress(base64.b64decode(text)).decode()
             for text in re.findall(r'id="text-\d+">(.*?)<', page)]  # fmt: skip
    assert texts[5].startswith("BEGINNING")
    assert texts[5].endswith("END")
    assert "characters are left out here" in texts[5]
    assert texts[4] == data["samples"][4]["text"]
    assert sum(len(zlib.compress(text.encode())) for text in texts) <= 20_000


def test_the_report_reads_what_an_evaluation_writes(real_run, missing_names, tmp_path):
    results = read_results(real_run)
    problems, samples = (read_lines(real_run / name) for name in ("problems.jsonl", "samples.jsonl"))
    samples = list(samples)
    write_evaluation_report(tmp_path / "report.html", results, problems, samples)
    assert missing_names == set()
    # What the page's script reads, besides what it adds itself
    script = re.sub("//.*", "", (Path(evaluation.__file__).parent / "templates/evaluation.js").read_text("utf-8"))
    added = {"position", "problemKey", "key", "length", "characters", "left_out"}
    assert set(re.findall(r"\bsample\.(\w+)", script)) - added <= set(samples[0])
    assert set(re.findall(r"\bproblem\.(\w+)", script)) <= set(problems[0])
    text = words(real_run / "report.html")
    assert not re.search(r"\b(None|NaN|nan|undefined|Undefined)\b", text)
    session = results["session"]
    assert f"Last session, main process: 12 samples in {duration(session['seconds'])}, " in text
    assert f"{session['tokens']} tokens, {session['tokens_per_second']:,.0f} a second." in text
    assert "trl_credit:quickstart: evaluation" in text
    assert "sampling.max_tokens 40 " in text
    assert f"transformers {results['versions']['transformers']} " in text
    task = results["tasks"]["trl_credit:arithmetic"]
    assert text.count("✓") == sum(row["majority_correct"] is True for row in task["per_problem"]) > 0
    assert "not judged" not in text
    # A run that only had to be judged
    results["session"] = {"samples": 0, "tokens": 0, "seconds": 4321, "tokens_per_second": None}
    write_evaluation_report(tmp_path / "report.html", results, problems, samples)
    assert "Last session, main process: 0 samples in 72 min." in words(tmp_path / "report.html")


def test_unjudged_problems_are_named(other_run):
    results = read_results(other_run)
    assert results["tasks"]["own"]["unjudged"] == 1
    text = words(other_run / "report.html")
    assert "problems 4 1 of 2" in text
    assert re.search(
        r"own 1 not judged \u2013 [\d.,]+ it depends on what you mean by the word and on whom you ask about its many uses",
        text,
    )
    page_text = (other_run / "report.html").read_text("utf-8")
    assert page_text.count('class="rest"') == 4 + 1


def test_the_mark_of_a_right_majority(tmp_path):
    data = make_evaluation(tasks=("aime24",), problems=4, n=2)
    rows = data["results"]["tasks"]["aime24"]["per_problem"]
    rows[0] |= {"answer": "1/2", "majority": "0.5", "majority_correct": True}
    rows[1] |= {"answer": "7", "majority": "7", "majority_correct": None}
    rows[2] |= {"answer": "7", "majority": "7", "majority_correct": False}
    del rows[3]["majority_correct"]
    write_evaluation_report(tmp_path / "a.html", **data)
    assert words(tmp_path / "a.html").count("✓") == 1
    assert "1/2 0.5 ✓" in words(tmp_path / "a.html")


def test_a_long_list_says_that_it_scrolls(tmp_path):
    for problems, said in ((4, False), (30, True)):
        write_evaluation_report(tmp_path / "a.html", **make_evaluation(tasks=("aime24",), problems=problems, n=1))
        text = words(tmp_path / "a.html")
        assert ("30 problems: scroll." in text) == said
        assert "pass@k and maj@k" not in text


def test_a_report_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFolderError, match=r"report\.html.*No space left on device"):
        write_evaluation_report(tmp_path / "report.html", {}, [], [])
    assert list(tmp_path.iterdir()) == []
