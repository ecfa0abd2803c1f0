"""Pictures of credit records."""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
from support.credit_report import awkward_records, make_record

from trl_credit.records.picture import plot_credit, tick_label


TOKENS = ["To", " add", " 83", " and", " ", "4", "8", "\n", "\n\n", "\t", "<script>alert(1)</script>", " x", "<0xE4>",
          "語", " 🙂", "שלום", " \\boxed{", "145", "}", "<|im_end|>"]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 20, 50, 119, 300])
def test_picture(tmp_path, count):
    tokens = [*TOKENS[:count], *[f"w{k}" for k in range(count - 20)]]
    record = make_record(tokens, masked=range(0, count, 7), advantage=-0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_credit(tmp_path / "a.png", record)
        figure.canvas.draw()
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    assert "advantage -0.5 (made less likely), reward 1" in figure.get_suptitle()
    renderer = figure.canvas.get_renderer()
    frame = figure.bbox
    shown = 0
    for axis in figure.axes:
        labels = [label for label in axis.get_xticklabels() if label.get_text()]
        shown += len(labels)
        boxes = [label.get_window_extent(renderer) for label in labels]
        assert all(box.y0 >= frame.y0 and box.x0 >= frame.x0 and box.x1 <= frame.x1 for box in boxes)
        assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(boxes))
    assert shown == min(count, 120)
    if count > 120:
        heaviest = int(np.argmax(record.weights["gcpo"]))
        assert tick_label(tokens[heaviest]) in [t.get_text() for axis in figure.axes for t in axis.get_xticklabels()]


def test_pictures_of_awkward_records(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for record in awkward_records():
            odd = {r"$\frac{": record.weights["gcpo"]} if "gcpo" in record.weights else {}
            plot_credit(tmp_path / "a.png", replace(record, weights=dict(record.weights) | odd))
    assert plot_credit(None, make_record()).axes
    assert [tick_label(t) for t in ("", " ", "\n", "\t", "語", "$x_1$", " a b")] == [
        "∅", "·", "⏎", "→", "<8A9E>", "$x_1$", " a b"]  # fmt: skip
    assert len(tick_label("x" * 99)) == 14
