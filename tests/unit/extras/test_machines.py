"""The checkpoint that all machines resume from."""

import shutil

import pytest
from support.checkpoint_files import layout

from trl_credit.extras import machines
from trl_credit.extras.checkpoints import ResumeError, names_read_by_all, write_manifest
from trl_credit.extras.machines import agreed_checkpoint


@pytest.fixture
def as_second(monkeypatch):
    """What the second of two processes gets, whose `output_dir` is `second`, if the first one's is `first`."""

    def call(asked, first, second):
        sent = []
        for index, folder in enumerate((first, second)):
            state = type("State", (), {"num_processes": 2, "process_index": index, "is_main_process": index == 0})
            monkeypatch.setattr(machines, "PartialState", state)
            monkeypatch.setattr(machines, "broadcast_object_list", lambda values: sent or sent.extend(values) or sent)
            monkeypatch.setattr(machines, "gather_object", lambda own: [(0, "head", "", []), *own])
            result = agreed_checkpoint(asked if asked in ("auto", "true") else str(folder / asked), str(folder))
        return result

    return call


@pytest.fixture(params=["ddp", "sharded", "adapter", "deepspeed", "fsdp"])
def disks(request, tmp_path):
    """Two disks after a run over two machines that saved on each."""
    first, second = tmp_path / "first", tmp_path / "second"
    for rank, disk in enumerate((first, second)):
        disk.mkdir()
        path = layout(disk / "checkpoint-2", request.param)
        for other in [*path.glob(f"*_{1 - rank}.*"), *path.glob(f"*/*_rank_{1 - rank}_mp*")]:
            other.unlink()
        write_manifest(path, 2)
    return first, second


def test_each_machine_resumes_from_its_own_checkpoint(disks, as_second):
    for asked in ("auto", "true", "checkpoint-2"):
        assert as_second(asked, *disks) == (str(disks[1] / "checkpoint-2"), False)


def test_every_file_that_a_process_reads_must_be_there(disks, as_second):
    first, second = disks
    path = second / "checkpoint-2"
    names = [*names_read_by_all(first / "checkpoint-2"), "rng_state_1.pth", "credit_state_1.safetensors"]
    assert len(names) > 3
    for name in names:
        kept = (path / name).read_bytes()
        (path / name).unlink()
        with pytest.raises(ResumeError, match=rf"process 1 \(on .*\) has no {name} in .*second/checkpoint-2"):
            as_second("auto", first, second)
        (path / name).write_bytes(kept)
    shutil.rmtree(second)
    with pytest.raises(ResumeError, match="`save_on_each_node: true`"):
        as_second("auto", first, second)


def test_a_shared_disk(tmp_path, as_second):
    path = layout(tmp_path / "checkpoint-2", "ddp")
    write_manifest(path, 2)
    assert as_second("auto", tmp_path, tmp_path) == (str(path), False)


def test_a_checkpoint_of_the_model_alone(tmp_path, as_second):
    """With `save_only_model`, no process has files of its own, however many they are."""
    path = layout(tmp_path / "checkpoint-2", "ddp")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_*", "credit_state_*"):
        for file in path.glob(name):
            file.unlink()
    write_manifest(path, 2)
    assert as_second("auto", tmp_path, tmp_path) == (str(path), True)


def test_more_processes_than_before_have_no_files_of_their_own(tmp_path, as_second):
    path = layout(tmp_path / "checkpoint-2", "ddp")
    for name in ("rng_state_1.pth", "credit_state_1.safetensors"):
        (path / name).unlink()
    write_manifest(path, 1)
    assert as_second("auto", tmp_path, tmp_path) == (str(path), False)


def test_nothing_to_resume_from(tmp_path, as_second):
    assert as_second("auto", tmp_path, tmp_path) == (None, False)
    with pytest.raises(ResumeError, match="there is no complete checkpoint"):
        as_second("true", tmp_path, tmp_path)
