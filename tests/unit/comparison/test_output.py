"""A finished comparison is written, whatever its labels."""

from support.comparison import make_comparison

from trl_credit.comparison import output, results
from trl_credit.comparison.page import (
    plot_learning_curves,
    write_learning_report,
)


def test_labels_that_nothing_can_encode_do_not_end_a_finished_comparison(tmp_path, capsys):
    label = "run[/x]\x1b[31m\ud800\r"
    the_plan, runs = make_comparison(labels=("uniform", label), seeds=3, updates=10)
    found = results.summarize(the_plan, runs)
    write_learning_report(tmp_path / "a.html", found)
    for suffix in ("png", "svg"):
        plot_learning_curves(tmp_path / f"a.{suffix}", found)
    (tmp_path / "a.md").write_text(results.to_markdown(found), encoding="utf-8")
    output.show(found)
    out = capsys.readouterr().out
    assert "run[/x]\\x1b[31m\\ud800\\r \u2212 uniform: " in out
    assert "\x1b" not in out + (tmp_path / "a.md").read_text(encoding="utf-8")
