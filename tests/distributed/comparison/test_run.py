"""Each run of a comparison on two processes."""

import pytest
from support.comparison import command, contents, finish


SHARP = {"method": "dgpo", "temperature": 0.001}


@pytest.mark.slow
def test_runs_on_two_processes(comparison_recipe, tmp_path):
    path, out = comparison_recipe(compare={"methods": ["uniform", SHARP], "seeds": 1}), tmp_path / "out"
    finish(command("--num_processes", "2", path=path, out=out))
    for history, accuracy, *_ in contents(out).values():
        assert len(history["reward"]) == 3
        assert history["num_tokens"][0] > 400  # of two processes
        assert accuracy is not None
