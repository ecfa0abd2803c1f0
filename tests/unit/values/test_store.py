"""The folder of samples and values."""

import json

import numpy as np
import pytest

from trl_credit._util.files import RunFolderError
from trl_credit.values.store import Sample, SampleValues, ValueFolder, prefix_key, read_values


IDENTITY = {"model": "m", "sampling": {"temperature": 1.0}}


def opened(path, identity=IDENTITY):
    folder = ValueFolder(path)
    folder.open(identity, {"settings": {}})
    return folder


def test_what_is_added_is_there_in_the_next_session(tmp_path):
    folder = opened(tmp_path)
    folder.add_draws([("a", 0, 1.0), ("a", 1, float("nan"))])
    folder.add_groups([{"prompt": 0, "index": 1, "ids": [1, 2]}])
    folder.close()
    with open(tmp_path / "draws.jsonl", "a") as file:
        file.write('{"prefix": "b", "dra')  # killed here
    folder = opened(tmp_path)
    draws = folder.draws()
    assert draws.pop(("a", 0)) == 1.0
    assert np.isnan(draws.pop(("a", 1)))
    assert not draws
    folder.add_draws([("b", 0, 0.0)])
    assert folder.draws()["b", 0] == 0.0
    assert folder.groups()[0, 1]["ids"] == [1, 2]
    folder.close()


def test_one_writer_and_one_kind_of_samples(tmp_path):
    folder = opened(tmp_path / "a")
    with pytest.raises(RunFolderError, match="Another process"):
        opened(tmp_path / "a")
    folder.close()
    with pytest.raises(RunFolderError, match=r"sampling.temperature: 1.0 -> 0.5"):
        opened(tmp_path / "a", {"model": "m", "sampling": {"temperature": 0.5}})
    folder = opened(tmp_path / "a")  # the error has let go of it
    folder.close()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "draws.jsonl").write_text("")
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        opened(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(RunFolderError, match="was not written by"):
        opened(tmp_path / "c")


def test_tables(tmp_path):
    folder = opened(tmp_path)
    example = {"prompt": "1+1=", "answer": "2"}
    samples = [
        Sample(0, i, (3, 4), "2", True, reward, advantage, example, (1, 2))
        for i, (reward, advantage) in enumerate([(1.0, 0.5), (float("nan"), float("nan"))])
    ]
    values = [
        SampleValues(
            tokens=np.array([0, 2]),
            mean=np.array([0.5, sample.reward]),
            stderr=np.array([0.1, 0.0]),
            count=np.array([8, 0]),
            halves=np.array([[0.25, 0.75], [sample.reward] * 2]),
            source=["sampled", "reward"],
        )
        for sample in samples
    ]
    folder.finish(samples, values, {"settings": {"seed": 3}})
    folder.close()
    found, read, about = read_values(tmp_path)
    assert about == {"settings": {"seed": 3}}
    assert found[0] == samples[0]
    assert np.isnan(found[1].reward)
    for own, other in zip(values, read, strict=True):
        for name in ("tokens", "mean", "stderr", "count", "halves"):
            np.testing.assert_array_equal(getattr(own, name), getattr(other, name))
        assert own.source == other.source
    (tmp_path / "values.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"no values\.parquet"):
        read_values(tmp_path)


def test_keys_tell_prefixes_apart():
    keys = [prefix_key(*prefix) for prefix in ((0, []), (1, []), (0, [1]), (0, [1, 2]), (0, [12]))]
    assert len(set(keys)) == 5
