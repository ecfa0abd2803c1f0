"""The shipped launch configuration starts two processes."""

import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_ddp_cpu_starts_two_gloo_processes(tmp_path):
    script = tmp_path / "state.py"
    script.write_text(
        "import sys\nimport torch\nfrom accelerate import PartialState\nfrom trl_credit.recipe.recipe import Recipe\n"
        "args, state = Recipe.read(sys.argv[1:]).training, PartialState()\n"
        "total = torch.ones(1)\ntorch.distributed.all_reduce(total)\n"
        "state.print(args.generation_batch_size, torch.distributed.get_backend(), args.device.type, int(total))\n"
        "state.destroy_process_group()\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml"), str(script)]
    command += ["--config", str(ROOT / "recipes" / "quickstart.yaml"), "--output_dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["128", "gloo", "cpu", "2"]
