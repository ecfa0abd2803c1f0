"""Continuations on two processes: they share the work, and know the same values."""

import json

import pytest
from support.launch import start


CASES = {
    # four completions of each process are a group's half
    "across": {"num_generations": 8, "per_device_train_batch_size": 4},
    "groups": {"num_generations": 4, "per_device_train_batch_size": 8},
    # an odd number of completions on each
    "odd": {"num_generations": 6, "per_device_train_batch_size": 3},
}


@pytest.mark.parametrize(("backend", "name"), [("ddp", "across"), ("ddp", "odd"), ("zero3", "groups")])
def test_two_processes(backend, name, tiny_model, tmp_path):
    count = 5
    case = {"credit": {"method": "vine", "every": 3, "count": count, "scale": "none"}, "max_steps": 2, **CASES[name]}
    job = start(backend, tmp_path / "run", {"tiny": tiny_model}, {"case": case}, script="continuations_worker.py")
    assert job.returncode == 0, job.stderr
    found = [json.loads((tmp_path / "run" / f"{rank}.json").read_text()) for rank in range(2)]
    batches = list(zip(*(result["seen"] for result in found), strict=True))
    assert len(batches) == 2
    logs = [[entry for entry in result["log"] if "reward" in entry] for result in found]
    on_both = False
    for batch, log in zip(batches, logs[0], strict=True):
        values = {}
        on_both |= bool(set(batch[0]["groups"]) & set(batch[1]["groups"]))
        for part in batch:
            for group, reward, ids, segments, row in zip(
                *(part[key] for key in ("groups", "rewards", "completions", "segments", "values")), strict=True
            ):
                assert len(segments) == len(ids)
                assert segments == [place // 3 for place in range(len(ids))]
                assert row[segments[-1] + 1] == reward == pytest.approx(sum(ids) % 7 / 7)
                for start_, segment in enumerate(segments[::3]):
                    key = (group, tuple(ids[: 3 * start_]))
                    value = row[segment]
                    # a mean of `count` rewards that are sevenths
                    assert value * 7 * count == pytest.approx(round(value * 7 * count), abs=1e-4)
                    assert values.setdefault(key, value) == value
        rows = sum(len(part["rewards"]) for part in batch)
        assert log["credit/continuations"] == pytest.approx(count * len(values) / rows)
        assert log["credit/unrewarded_continuations"] == 0
        assert log["credit/continuation_tokens"] > 0.5
        assert len(set(values.values())) > 3
    assert on_both == (name != "groups")
    if backend == "ddp":
        assert found[0]["sum"] == found[1]["sum"]
