"""Evaluation with real vLLM, in process and at servers: its greedy texts are those of transformers."""

import contextlib
import signal
import sys
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.vllm import greedy, members, run, run_worker, serve, started, texts_in
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit.evaluation import evaluate
from trl_credit.model_files import embedded_model_path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The embedded model as a checkpoint in float32."""
    path = str(tmp_path_factory.mktemp("base"))
    AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32).save_pretrained(path)
    AutoTokenizer.from_pretrained(embedded_model_path()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base):
    """An adapter that changes its texts."""
    path = str(tmp_path_factory.mktemp("adapter"))
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "up_proj"]
    config = LoraConfig(r=8, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory, base, adapter):
    """transformers' texts."""
    folder = tmp_path_factory.mktemp("transformers")
    for name, model in (("base", base), ("adapter", adapter)):
        evaluate(greedy(folder / name, model=model, backend="transformers"))
    texts = {name: texts_in(folder / name) for name in ("base", "adapter")}
    assert texts["base"] != texts["adapter"]
    return texts


@pytest.fixture(scope="module")
def server(tmp_path_factory, base, adapter):
    lora = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"mine={adapter}"]
    with serve(tmp_path_factory.mktemp("server"), base, *lora) as server:
        yield server


def test_in_process(tmp_path, base, adapter, expected):
    """After a start that vLLM refused, in the same folder. The dtype is the checkpoint's, where vLLM takes bfloat16."""
    found = run_worker("evaluate_in_process", tmp_path, models={"base": base, "adapter": adapter})
    assert "max_model_len (4096) is greater than the derived max_model_len" in found["refused"]
    for name, texts in expected.items():
        assert found[name] == {"texts": [[list(key), text] for key, text in sorted(texts.items())], "dtype": "float32"}


def test_at_a_server(tmp_path, server, expected):
    """`max_tokens` is cut to the server's context."""
    for name, model in (("base", "tiny"), ("adapter", "mine")):
        results = evaluate(greedy(tmp_path / name, model=model, base_url=server.url, max_tokens=1000))
        assert 64 < results["settings"]["sampling"]["max_tokens"] < 128
        assert texts_in(tmp_path / name) == expected[name]


def test_one_of_two_servers_is_killed(tmp_path, server, base, expected):
    with serve(tmp_path, base) as other:

        def progress(done, total, tokens):
            if done == 8:
                other.kill()

        settings = {"model": "tiny", "base_url": [server.url, other.url], "concurrency": 4}
        evaluate(greedy(tmp_path / "run", **settings), progress=progress)
        assert 1 <= other.log.read_text().count("completions HTTP") < 24
    assert texts_in(tmp_path / "run") == expected["base"]


def command(folder, *options):
    settings = ["--tasks", "trl_credit:arithmetic", "--n", "1", "--limit", "24", "--preset", "greedy"]
    settings += ["--max_tokens", "40", "--output_dir", str(folder), "--no_report"]
    return [sys.executable, "-m", "trl_credit.cli", "eval", *settings, *options]


@contextlib.contextmanager
def stopped(arguments, folder, number, after):
    """A command that gets a signal after some samples, with its exit status and how many there are."""
    path, log = folder / "samples.jsonl", folder.parent / "log"
    with started(arguments, log) as process:
        deadline = time.monotonic() + 300
        while not path.exists() or path.read_bytes().count(b"\n") < after:
            assert process.poll() is None, log.read_text()[-6000:]
            assert time.monotonic() < deadline, log.read_text()[-6000:]
            time.sleep(0.002)
        process.send_signal(number)
        status = process.wait(60)
        yield process, status, path.read_bytes().count(b"\n")


def test_killed_and_continued_at_a_server(tmp_path, server, expected):
    folder = tmp_path / "run"
    arguments = command(folder, "--model", "tiny", "--base_url", server.url, "--concurrency", "1")
    with stopped(arguments, folder, signal.SIGKILL, after=8) as (_, status, count):
        assert status == -signal.SIGKILL
        assert 8 <= count < 24
    run(arguments, tmp_path / "log")
    assert texts_in(folder) == expected["base"]


def test_sigterm_ends_vllm_in_process(tmp_path, base):
    folder = tmp_path / "run"
    kwargs = "{max_model_len: 128, enforce_eager: true, max_num_seqs: 1}"
    arguments = command(folder, "--model", base, "--backend", "vllm", "--vllm_kwargs", kwargs)
    with stopped(arguments, folder, signal.SIGTERM, after=4) as (process, status, count):
        assert status == 143
        assert 4 <= count < 24
        deadline = time.monotonic() + 30
        while members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert members(process.pid) == []
