"""Objects at a dotted path or in a file."""

import sys

import pytest

from trl_credit._util.imports import load_dotted


@pytest.mark.parametrize("path", ["late_main.reward", "late_main:reward", "./late_main.py:reward"])
def test_neighbours_can_be_imported_later_too(path, tmp_path, monkeypatch):
    (tmp_path / "late_main.py").write_text("def reward():\n    from late_helper import value\n\n    return value\n")
    (tmp_path / "late_helper.py").write_text("value = 3\n")
    (tmp_path / "json.py").write_text("raise AssertionError('hides another module')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as for an installed command
    for name in ("late_main", "late_helper", "json"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    function = load_dotted(path)
    assert function() == 3
    import json  # noqa: F401

    assert sys.path.count(str(tmp_path)) == 1
