"""`keep_groups_together` on two processes."""

import json

from support.launch import start


def test_each_process_deals_its_own_groups(tiny_model, tmp_path):
    case = {
        "keep_groups_together": True,
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "max_steps": 4,
    }
    job = start("ddp", tmp_path / "run", {"tiny": tiny_model}, {"case": case}, script="groups_worker.py")
    assert job.returncode == 0, job.stderr
    found = [json.loads((tmp_path / "run" / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, steps in enumerate(found):
        assert all(len(set(groups)) == 1 for groups in steps)  # four completions, a group
        own = {2 * rank, 2 * rank + 1}
        for first in (0, 2):  # a generation batch has two groups a process
            assert {groups[0] for groups in steps[first : first + 2]} == own
