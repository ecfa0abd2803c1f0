"""An evaluation shared by several processes."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT, TESTS
from support.evaluation import FakeBackend, config

from trl_credit._util.files import read_lines, write_atomically
from trl_credit.evaluation import evaluate


@pytest.mark.slow
def test_processes_without_a_common_disk(sums, tmp_path):
    """As on two machines: each process writes to a folder of its own, and the main one gets all samples."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from support.evaluation import FakeBackend, config\n"
        "from trl_credit.evaluation import evaluate\n"
        "from accelerate import PartialState\n"
        f"here = Path({str(tmp_path)!r}, os.environ['RANK'])\n"
        f"results = evaluate(config({sums!r}, here), FakeBackend())\n"
        "assert results['tasks']['sums']['n'] == 5\n"
        "PartialState().destroy_process_group()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", str(script)]
    evaluate(config(sums, tmp_path, output_dir=str(tmp_path / "alone")), FakeBackend())
    # Of an earlier run, with other weights
    (tmp_path / "2" / "run").mkdir(parents=True)
    stale = [{**row, "text": "old"} for row in read_lines(tmp_path / "alone" / "samples.jsonl")]
    write_atomically(tmp_path / "2" / "run" / "samples.rank2.jsonl", (json.dumps(row) + "\n" for row in stale))
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "0" / "run" / "samples.jsonl").read_bytes() == (
        tmp_path / "alone" / "samples.jsonl"
    ).read_bytes()
    assert len(read_lines(tmp_path / "2" / "run" / "samples.rank2.jsonl")) == 10
