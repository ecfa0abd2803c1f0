"""The page that compares two evaluations."""

import pytest
from support.evaluation_runs import make_comparison, words

from trl_credit.evaluation import compare_runs
from trl_credit.evaluation import page as evaluation
from trl_credit.evaluation.compare_page import changes_sampling, headline, plot_comparison, write_comparison_report


@pytest.mark.parametrize(
    ("overall", "text"),
    [
        ((0.042, 0.011, 0.073), "B is better by 4.2 points (95 % interval 1.1 to 7.3)."),
        ((-0.042, -0.073, -0.011), "A is better by 4.2 points (95 % interval 1.1 to 7.3)."),
        ((0.01, -0.02, 0.04), "No difference beyond noise: B minus A is +1.0 points (95 % interval −2.0 to +4.0)."),  # noqa: RUF001
        ((0.01, None, None), "B minus A is +1.0 points, without an interval."),
        ((None, None, None), "The runs cannot be compared: they have no problem in common that both were judged on."),
    ],
)
def test_headline(overall, text):
    assert headline({"overall": dict(zip(("difference", "low", "high"), overall, strict=True))}) == text


def test_no_interval_from_a_standard_error_of_zero():
    assert evaluation.interval({"avg": 0.5, "stderr": 0.1}) == pytest.approx((0.304, 0.696))
    assert evaluation.interval({"avg": 0.05, "stderr": 0.1})[0] == 0
    assert evaluation.interval({"avg": 0.0, "stderr": 0.0}) is None
    assert evaluation.interval({"avg": 0.5, "stderr": None}) is None


def test_tasks_of_one_run_are_named(tmp_path):
    write_comparison_report(tmp_path / "a.html", make_comparison() | {"left_out": ["math500"]})
    assert "only one of the runs has them: math500." in (tmp_path / "a.html").read_text("utf-8")


def test_which_differences_are_flagged(tmp_path):
    flagged = ("backend", "sampling.temperature", "n", "chat_template_kwargs.enable_thinking", "notes",
               "tasks.own.v2.first_prompt", "tasks.preset.answer_pattern")  # fmt: skip
    expected = ("versions.torch", "preset.name", "preset.source", "seed", "tasks.own.v2.source")
    assert [changes_sampling({"field": field}) for field in flagged] == [True] * len(flagged)
    assert [changes_sampling({"field": field}) for field in expected] == [False] * len(expected)
    write_comparison_report(tmp_path / "same.html", make_comparison(differences=[{"field": "seed", "a": 0, "b": 1}]))
    assert "same sampling settings" in (tmp_path / "same.html").read_text("utf-8")
    other = [{"field": "sampling.temperature", "a": 0.6, "b": 1.0}]
    write_comparison_report(tmp_path / "other.html", make_comparison(differences=other))
    assert "made with different settings" in (tmp_path / "other.html").read_text("utf-8")


def test_the_report_reads_what_a_comparison_returns(real_run, other_run, missing_names, tmp_path):
    comparison = compare_runs(real_run, other_run)
    fields = {item["field"]: changes_sampling(item) for item in comparison["differences"]}
    assert fields == {"sampling.temperature": True, "seed": False}
    write_comparison_report(tmp_path / "a.html", comparison)
    assert missing_names == set()
    text = words(tmp_path / "a.html")
    assert "only one of the runs has them: own." in text
    assert "made with different settings" in text
    assert "Differs, as it may: setting A B seed 0 1" in text
    plot_comparison(tmp_path / "a.png", comparison)
