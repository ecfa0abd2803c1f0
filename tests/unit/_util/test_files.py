"""Atomic writes and differences of settings."""

import os

import pytest

from trl_credit._util.files import differences, write_atomically


def test_atomic_writing(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, ["a"])

    def lines():
        yield "b"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(path, lines())
    assert path.read_text() == "a"
    assert os.listdir(tmp_path) == ["x"]


def test_a_disk_without_modes(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.chmod", refused)
    write_atomically(tmp_path / "x", ["a"])
    assert (tmp_path / "x").read_text() == "a"


def test_differences_are_found():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(old, new) == [("a.c", 2, 4), ("d", 3, None), ("e", None, 5)]
