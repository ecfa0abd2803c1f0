"""recipes/cluster/slurm.sh with real trainers: two nodes that are this machine, preempted and queued again."""

import signal
import sys

import pytest
import yaml
from helpers import ROOT
from support.cluster import Cluster


pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="the scripts are for clusters of Linux machines"),
]


def test_two_nodes_go_on_after_a_preemption(tmp_path):
    cluster = Cluster(tmp_path, real=("trl-credit", "getent"))
    settings = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    del settings["eval"]
    settings |= {
        "generated_dataset_size": 64, "per_device_train_batch_size": 8,
        "max_steps": 12, "save_strategy": "steps", "save_steps": 100, "logging_steps": 1, "enable_jit_checkpoint": True,
        "output_dir": "run",
    }  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    launcher = "recipes/accelerate/ddp_cpu.yaml"
    options = {"GPUS": "1", "LAUNCHER": launcher, "OMP_NUM_THREADS": "1", "GRACE": "120", "PORT": "29571"}
    nodes = ("localhost,localhost", str(recipe))
    with cluster.submit(*nodes, **options) as job:
        for line in job.stdout:
            if "'reward'" in line:
                break
        else:
            pytest.fail("no update was logged")
        cluster.signal(signal.SIGTERM, "trainer")
        said = job.communicate()[0]
        assert job.returncode == 0, said
        assert "back into the queue, from the last checkpoint" in said
    (checkpoint,) = (cluster.shared / "run").glob("checkpoint-*")
    saved = int(checkpoint.name.partition("-")[2])
    assert saved < 12
    with cluster.submit(*nodes, **options) as job:
        said = job.communicate()[0]
        assert job.returncode == 0, said
    assert len([line for line in said.splitlines() if "'reward'" in line]) == 12 - saved  # one process logs
    assert (cluster.shared / "run" / "model.safetensors").is_file()
    assert [call["words"] for call in cluster.calls("scontrol") if "show" not in call["words"]] == [["requeue", "77"]]
