"""Training with real vLLM, in the trainer's process and at a server."""

import pytest
from support.vllm import run_worker, serve

from trl_credit.model_files import embedded_model_path


GAP = "sampling/sampling_logp_difference/mean"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = ["--weight-transfer-config", '{"backend": "file"}', "--logprobs-mode", "processed_logprobs"]
    with serve(tmp_path_factory.mktemp("server"), embedded_model_path(), *options, "--max-logprobs", "-1") as server:
        yield server


def updates(rows):
    return [row for row in rows if "loss" in row]


def check(rows, steps, iterations=1):
    """A run with dynamic sampling and evaluations: it learns, and the sampler's weights are the trainer's."""
    assert len(updates(rows)) == steps
    for number, row in enumerate(updates(rows)):
        assert row["grad_norm"] > 0
        assert row["credit/nonfinite_tokens"] == 0
        assert (GAP in row) == (number % iterations == 0)  # logged with what was generated
        if GAP in row:
            assert row[GAP] < 0.05
            assert row["dynamic_sampling/rounds"] >= 1
    assert sum("eval_trl_credit:arithmetic/avg@2" in row for row in rows) == 2


def test_in_the_trainer_s_process(tmp_path):
    """`uniform` is TRL's trainer, value for value. Without weight sync the sampler falls behind, and it shows."""
    found = run_worker("colocate", tmp_path)
    stock, uniform = updates(found["stock"]), updates(found["uniform"])
    assert len(stock) == 3
    assert all(row["grad_norm"] > 0 for row in stock)
    assert [{key: row[key] for key in stock[0]} for row in uniform] == stock
    assert uniform[-1][GAP] < 0.05
    assert updates(found["stale"])[-1][GAP] > 5 * uniform[-1][GAP]
    check(found["gcpo"], steps=4, iterations=2)


def test_at_a_server(tmp_path, server):
    """Weights go by a file, in the place of NCCL."""
    found = run_worker("with_server", tmp_path, port=server.port)
    assert max(row[GAP] for row in updates(found["uniform"])) < 1e-4  # float32 on both sides
    check(found["dgpo"], steps=4, iterations=2)


def test_two_processes_at_a_server(tmp_path, server):
    check(run_worker("two_processes", tmp_path, processes=2, port=server.port)["gcpo"], steps=3)
