"""Where matplotlib's pictures are made."""

import sys

import pytest

from trl_credit.report.figure import new_figure


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install 'trl-credit\[analysis\]'"):
        new_figure(1, 1)
