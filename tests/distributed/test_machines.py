"""Runs over two machines, each with a launcher of its own, started as docs/training.md says."""

import json
import shutil

import pytest
import yaml
from helpers import ROOT
from safetensors.torch import load_file
from support.launch import without_times
from support.machines import machines


# recipes/quickstart.yaml, but short, with checkpoints and a reward under which a machine may stop
CHANGES = {
    "reward_funcs": [f"{ROOT / 'tests' / 'support' / 'fatal.py'}:reward"], "generated_dataset_size": 64,
    "dynamic_sampling": True, "per_device_train_batch_size": 4, "num_generations": 4, "max_steps": 4, "logging_steps": 1,
    "save_strategy": "steps", "save_steps": 2, "output_dir": "outputs",
}  # fmt: skip

LAUNCHER = ROOT / "recipes" / "accelerate"
TRAIN = ("-m", "trl_credit.train", "--config", "recipe.yaml")
RANKS = (("--machine_rank", "0"), ("--machine_rank", "1"))
# A disk of its own for each machine
OWN_DISKS = (("--output_dir", "disk0"), ("--output_dir", "disk1"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The two machines, and the recipe in their working directory."""
    folder = tmp_path_factory.mktemp("machines")
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    del recipe["eval"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | CHANGES))
    with machines(folder) as found:
        yield found


def over_both(two, config, each=RANKS):
    """The words of the documented command up to the recipe, for each machine."""
    first = ("--config_file", str(LAUNCHER / config), "--num_machines", "2", "--num_processes", "2")
    first += ("--main_process_ip", two.head, "--main_process_port", str(two.port))
    return [(*first, *own) for own in each]


def on_both(two, name, config, *words, launcher=RANKS, own=((), ()), **variables):
    """Trains on both machines, to the end or an error."""
    each = [
        (*launch, *TRAIN, *words, *mine) for launch, mine in zip(over_both(two, config, launcher), own, strict=True)
    ]
    return two.run(name, each, **variables)


def on_one(two, name, config, *words):
    """Trains with two processes on the first machine."""
    ours = ("--config_file", str(LAUNCHER / config), "--num_machines", "1", "--num_processes", "2")
    launched = two.launch(name, 0, *ours, "--main_process_port", "0", *words, *TRAIN, "--output_dir", name)
    launched.wait()
    assert launched.code == 0, launched.text[-6000:]


def end(folder):
    """What a run logged, without times, and its last parameters."""
    last = folder / "checkpoint-4"
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return without_times(history), load_file(last / "model.safetensors")


def assert_same_end(ours, theirs):
    (our_history, our_parameters), (their_history, their_parameters) = end(ours), end(theirs)
    assert [entry["step"] for entry in their_history] == [1, 2, 3, 4]
    assert our_history == their_history
    assert max(entry["dynamic_sampling/rounds"] for entry in their_history) > 1
    assert our_parameters.keys() == their_parameters.keys()
    assert all((our_parameters[name] == value).all() for name, value in their_parameters.items())


def assert_failed(runs, *messages):
    """Every machine ends with an error, and prints it."""
    for run in runs:
        assert run.code != 0
        for message in messages:
            assert message in run.text, run.text[-6000:]


def stops_and_resumes(two, name, config, *words, disks, launchers=(RANKS, RANKS)):
    """A run whose second machine stops in update 3, after a checkpoint, and the same resumed on both."""
    stopped = on_both(two, f"{name}-stopped", config, *words, launcher=launchers[0], own=disks, DIES_AT="3")
    assert all(run.code != 0 for run in stopped)
    for _, disk in disks:
        assert [path.name for path in (two.folder / disk).glob("checkpoint-*")] == ["checkpoint-2"]
    again = (*words, "--resume_from_checkpoint", "auto")
    resumed = on_both(two, f"{name}-resumed", config, *again, launcher=launchers[1], own=disks)
    assert all(run.code == 0 for run in resumed), "\n".join(run.text[-6000:] for run in resumed)


def test_ddp_with_a_disk_for_each_machine(two):
    """`save_on_each_node`: each machine resumes from its own checkpoint, and ends where one machine does."""
    on_one(two, "ddp", "ddp_cpu.yaml")
    stops_and_resumes(two, "each", "ddp_cpu.yaml", "--save_on_each_node", "true", disks=OWN_DISKS)
    for disk in ("disk0", "disk1"):
        assert_same_end(two.folder / disk, two.folder / "ddp")
    assert not (two.folder / "disk0" / "checkpoint-4" / "rng_state_1.pth").exists()


def test_zero3_with_a_shared_disk(two):
    """Stopped with ranks, resumed with machines that number themselves: `--rdzv_backend c10d`."""
    precision = ("--mixed_precision", "no")  # a CPU has no use for the file's bf16
    on_one(two, "zero3", "zero3_multinode.yaml", *precision)
    ranks = [(*own, *precision) for own in RANKS]
    itself = ("--rdzv_backend", "c10d", *precision)
    # On the host's loopback address the second launcher would find the head's port in use
    themselves = [itself, itself if two.networks else (*itself, "--machine_rank", "1")]
    shared = (("--output_dir", "shared"),) * 2
    stops_and_resumes(two, "shared", "zero3_multinode.yaml", disks=shared, launchers=(ranks, themselves))
    assert_same_end(two.folder / "shared", two.folder / "zero3")


def test_checkpoints_without_a_shared_disk(two):
    """The run warns where it saves, and resuming is an error on both that names the ways out."""
    own = (("--output_dir", "alone0"), ("--output_dir", "alone1"))
    saved = on_both(two, "alone", "ddp_cpu.yaml", "--max_steps", "2", own=own)
    assert all(run.code == 0 for run in saved), saved[0].text[-6000:]
    assert "checkpoint-2 has no rng_state_1.pth" in saved[0].text
    assert "`save_on_each_node: true`" in saved[0].text
    resumed = on_both(two, "not-resumed", "ddp_cpu.yaml", "--resume_from_checkpoint", "auto", own=own)
    assert_failed(
        resumed, "trl-credit train: error: `resume_from_checkpoint`: process 1", "has no model.safetensors",
        "`save_on_each_node: true`",
    )  # fmt: skip
    # As the error says: every machine's files on every machine
    shutil.copytree(two.folder / "alone0", two.folder / "alone1", dirs_exist_ok=True)
    resumed = on_both(two, "copied", "ddp_cpu.yaml", "--resume_from_checkpoint", "auto", own=own)
    assert all(run.code == 0 for run in resumed), resumed[1].text[-6000:]


def test_machines_with_different_settings(two):
    own = (("--credit", "uniform"), ("--learning_rate", "0.1"))
    failed = on_both(two, "different", "ddp_cpu.yaml", own=own)
    assert_failed(
        failed,
        "`credit` is {'method': 'uniform'} on process 0, but {'method': 'gcpo'",
        "`learning_rate` is 5e-05 on process 0, but 0.1 on process 1",
        "on every machine",
    )
