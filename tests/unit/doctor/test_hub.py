"""Where models and data are."""

import json

import huggingface_hub
import pytest

from trl_credit.doctor.hub import CACHED, HERE, MISSING, PARTIAL, REMOTE, answers, find


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a function that puts a file of a model into it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache",
        lambda name, file: next(map(str, (tmp_path / "hub").glob(f"models--{name.replace('/', '--')}/*/*/{file}")), None),
    )  # fmt: skip

    def put(file, text="{}", kind="models", name="org--model"):
        path = tmp_path / "hub" / f"{kind}--{name}" / "snapshots" / "abc" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return put


def state(name, kind="model"):
    return find("field", name, kind).state


def test_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert state("model") == state("./model") == state("trl_credit:quickstart") == HERE
    assert state("./other") == state("/no/such/model") == state("a/b/c") == state("a b c") == MISSING
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}["uid"])
    assert state("~/model") == MISSING
    assert state("data.jsonl", "dataset") == MISSING
    (tmp_path / "data.jsonl").touch()
    assert state("data.jsonl", "dataset") == HERE


def test_ports(monkeypatch):
    asked = []

    def connect(address, timeout):
        asked.append(address)
        raise OSError

    monkeypatch.setattr("socket.create_connection", connect)
    for address in ("https://a", "http://a", "a:9", "https://a:8443/v1"):
        assert not answers(address)
    assert asked == [("a", 443), ("a", 80), ("a", 9), ("a", 8443)]


def test_a_model_in_the_cache(cache):
    assert state("org/model") == REMOTE
    cache("config.json")
    assert state("org/model") == PARTIAL
    cache("model-1.safetensors")
    assert state("org/model") == CACHED
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    cache("model.safetensors.index.json", json.dumps(shards))
    assert state("org/model") == PARTIAL
    cache("model-2.safetensors")
    assert state("org/model") == CACHED


def test_data_in_the_cache(cache, tmp_path):
    assert state("org/data", "dataset") == REMOTE
    cache("train.parquet", kind="datasets", name="org--data")
    assert state("org/data", "dataset") == CACHED
    assert state("org/more", "dataset") == REMOTE
    (tmp_path / "datasets" / "org___more" / "default").mkdir(parents=True)
    assert state("org/more", "dataset") == CACHED


def test_the_hub_is_asked_only_for_what_is_not_here(cache, monkeypatch):
    asked = []

    class Api:
        def repo_info(self, name, repo_type, timeout):
            asked.append((name, repo_type))
            raise ValueError("404\nnot found")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert find("field", "org/model", "model").told == ""
    assert find("field", "org/model", "model", ask=True).told == "ValueError: 404 not found"
    cache("config.json")
    cache("model.safetensors")
    assert find("field", "org/model", "model", ask=True).told == ""
    assert asked == [("org/model", "model")]
