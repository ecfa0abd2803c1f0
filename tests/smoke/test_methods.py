"""Every method trains, and as it did when its trajectory was written (see support/trajectory.py)."""

import json
import math

import pytest
from support.trajectory import FOLDER, LOGGED, LOGGED_ADVANTAGES, UPDATES, run

from trl_credit import METHODS


def moved(ours, theirs, place=""):
    """Names, with both values, of everything that differs by more than rounding."""
    if isinstance(theirs, dict):
        keys = {*ours, *theirs}
        return [line for key in sorted(keys) for line in moved(ours.get(key), theirs.get(key), f"{place}/{key}")]
    if isinstance(theirs, list) and isinstance(ours, list) and len(ours) == len(theirs):
        return [line for i, pair in enumerate(zip(ours, theirs, strict=True)) for line in moved(*pair, f"{place}[{i}]")]
    if isinstance(ours, float) and isinstance(theirs, float) and math.isclose(ours, theirs, rel_tol=1e-3, abs_tol=1e-5):
        return []
    return [f"{place}: {theirs} -> {ours}"]


@pytest.mark.parametrize("name", METHODS)
def test_the_trajectory_is_the_one_written(name, tiny_model, tmp_path):
    written = FOLDER / f"{name}.json"
    assert written.exists(), f"write it: python tests/support/trajectory.py {name}"
    found = run(name, tiny_model, tmp_path)
    assert len(found["updates"]) == UPDATES
    assert all(update["grad_norm"] > 0 for update in found["updates"])
    assert "\n".join(moved(found, json.loads(written.read_text()))) == ""


def test_every_trajectory_has_its_method_and_moves():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(METHODS)
    for path in FOLDER.glob("*.json"):
        updates = json.loads(path.read_text())["updates"]
        credit = "weights" if "weights" in updates[0] else "advantages"
        logged = LOGGED if credit == "weights" else LOGGED_ADVANTAGES
        assert all({*logged, credit} == {*update} for update in updates)
        uneven = max(max(update[credit]) - min(update[credit]) for update in updates)
        assert (uneven > 0.05) == (path.stem != "uniform"), path.stem


def test_what_moved_is_named():
    written = {"updates": [{"loss": 1.0, "weights": [1.0, 2.0]}]}
    assert moved({"updates": [{"loss": 1.0001, "weights": [1.0, 2.0]}]}, written) == []
    assert moved({"updates": [{"loss": 1.1, "weights": [1.0, math.nan]}]}, written) == [
        "/updates[0]/loss: 1.0 -> 1.1",
        "/updates[0]/weights[1]: 2.0 -> nan",
    ]
    assert moved({"updates": []}, written) == ["/updates: [{'loss': 1.0, 'weights': [1.0, 2.0]}] -> []"]
