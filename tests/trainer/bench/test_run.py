"""The benchmark as a whole."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.bench import FAVOURITE, KNOWS, slow_auroc
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit.bench import report, run
from trl_credit.bench.baselines import baselines
from trl_credit.bench.run import BenchSettings
from trl_credit.bench.scores import METRICS
from trl_credit.bench.served import served_methods
from trl_credit.bench.tasks import make_items, tokens_and_labels, variants
from trl_credit.methods import GCPO


# The whole


def tiny(folder, bench_model, **changes) -> BenchSettings:
    chosen = {
        "model": bench_model,
        "reference": bench_model,
        "methods": ("gcpo", "dgpo", FAVOURITE),
        "tasks": ("style", "length_1x"),
        "num_items": 6,
        "groups": 0,
        "output_dir": folder,
    }
    return BenchSettings(**(chosen | changes))


def test_runs_are_equal(tmp_path, bench_model):
    first, second = tmp_path / "a", tmp_path / "b"
    results = run.run(tiny(first, bench_model))
    run.run(tiny(second, bench_model))
    names = {"bench.json", "bench.md", "auroc.png", "auroc.svg", "sweeps.png", "sweeps.svg"}
    assert {path.name for path in first.iterdir()} == names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert json.loads((first / "bench.json").read_text()) == results
    assert results["settings"]["rendering"] == "compact"
    assert set(results["scores"]) == {"gcpo", "dgpo", "favourite", "shuffled gcpo", *baselines()}
    for tasks in results["scores"].values():
        assert set(tasks) == {"style", "length_1x"}
        assert set(tasks["style"]) == set(METRICS)
    assert results["scores"]["uniform"]["style"]["auroc"] == {"mean": 0.5, "stderr": 0.0, "median": 0.5, "n": 6}
    assert results["scores"]["dgpo"]["style"]["auroc"]["mean"] == 0.5  # the reference is the model itself
    # All credit on the first token, which never decides
    assert results["scores"]["favourite"]["style"]["mass"]["mean"] == 0.0
    assert set(results["verdicts"]) == {"gcpo", "dgpo", "favourite"}
    assert any(sentence.startswith("favourite does not beat") for sentence in results["sentences"])
    swept = {(entry["method"], entry["parameter"]) for entry in results["sweeps"]}
    assert ("gcpo", "top_mass") in swept
    assert ("dgpo", "temperature") in swept


def test_a_policy_without_own_errors(tmp_path, bench_model, capsys, monkeypatch):
    """Random weights write no solutions: no items, which is said, and everything else is there."""
    monkeypatch.setattr(run, "MAX_COMPLETION_TOKENS", 8)
    results = run.run(tiny(tmp_path, bench_model, tasks=("own_error", "style"), num_items=2))
    assert results["tasks"]["own_error"]["items"] == 0
    assert results["tasks"]["own_error"]["completions"]["malformed"] == 64
    assert results["scores"]["gcpo"]["own_error"]["auroc"] == {"mean": None, "stderr": None, "median": None, "n": 0}
    assert any(note.startswith("own_error has no items instead of 2: of 64 completions") for note in results["notes"])
    told = [sentence for sentence in results["sentences"] if sentence.startswith(("gcpo", "A rule"))]
    assert told
    assert not any("own_error" in sentence or "nan" in sentence for sentence in told)
    report.show(results)
    assert "Completions sampled for own errors" in capsys.readouterr().out
    alone = run.run(tiny(tmp_path, bench_model, tasks=("own_error",), num_items=2))
    (few,) = [sentence for sentence in alone["sentences"] if sentence.endswith(": too few items to tell.")]
    assert few.startswith("gcpo, ")


def test_own_errors_of_the_embedded_model(tmp_path):
    results = run.run(
        tiny(tmp_path, None, reference=None, tasks=("own_error_style",), num_items=4, drift=(0,), methods=("gcpo",))
    )
    task = results["tasks"]["own_error_style"]
    assert task["items"] == 4
    assert task == results["drift"]["0"]["tasks"]["own_error_style"]
    assert results["scores"]["surprisal"]["own_error_style"]["auroc"]["n"] == 4
    assert results["scores"]["surprisal"]["own_error_style"]["mass"]["mean"] < 0.6
    assert not any("instead of" in note for note in results["notes"])


def test_own_errors_need_the_compact_rendering(tmp_path, bench_model):
    results = run.run(tiny(tmp_path / "a", bench_model, rendering="text", tasks=("own_error", "style"), num_items=2))
    assert list(results["tasks"]) == results["settings"]["variants"] == ["style"]
    assert "No own_error: the policy's own errors can be checked in the compact rendering only." in results["notes"]
    with pytest.raises(ValueError, match="No task is left"):
        run.run(tiny(tmp_path / "b", bench_model, rendering="text", tasks=("own_error",)))
    assert not (tmp_path / "b").exists()


def test_every_kind_of_method(tmp_path, bench_model, capsys):
    """Factors, a term, own advantages and a hint, on items in groups of right and wrong completions."""
    short = '{"method": "rlcsd", "template": "{solution} {prompt}"}'  # the default is longer than its context
    methods = ("rlsd", short, "otb", "delta", f'{{"method": "{KNOWS}", "term_there": -3.0}}')
    results = run.run(
        tiny(tmp_path, bench_model, methods=methods, groups=8, target_groups=16, tasks=("planted_error",))
    )
    for label in ("rlsd", "rlcsd", "otb", "delta", "knows"):
        scores = results["scores"][label]["planted_error"]
        assert scores["auroc"]["n"] == 6
        assert (scores["auroc"]["stderr"] > 0) == (label != "knows"), label
    assert results["scores"]["knows"]["planted_error"]["auroc"]["mean"] == 1.0
    assert results["scores"]["otb"]["planted_error"]["mass"]["n"] == 6  # a wrong completion never gets a reward there
    assert any(sentence.startswith("knows ") for sentence in results["sentences"])
    worst = run.run(
        tiny(tmp_path, bench_model, methods=(methods[-1].replace("-", ""),), groups=0, tasks=("planted_error", "style"))
    )
    for task in worst["scores"]["knows"].values():  # partly praise, so that there are no shares of blame
        assert task["auroc"]["mean"] == 0.0
        assert task["mass"]["mean"] is task["ratio"]["mean"] is None
    table = (tmp_path / "bench.md").read_text().partition("## Share of the credit on the deciding tokens")[2]
    assert "| knows | - | - |" in table


def test_text_rendering(tmp_path, bench_model, capsys):
    results = run.run(tiny(tmp_path, bench_model, rendering="text", reference=None, tasks=("altered_copy",), groups=8))
    assert results["methods"]["gcpo"]["negative_prompt"] == GCPO().negative_prompt
    assert "gradients" not in results
    assert any("without a `reference`" in note for note in results["notes"])
    assert any("embedded model's problems only" in note for note in results["notes"])
    assert not any("dgpo" in entry["method"] for entry in results["sweeps"])
    assert "dgpo: uniform without a reference, so there is nothing to say of it here." in results["sentences"]
    report.show(results)
    assert "altered_copy" in capsys.readouterr().out


def test_scores_are_those_of_the_methods(tmp_path, bench_model):
    """Against weights computed here from a plain forward."""
    results = run.run(tiny(tmp_path, bench_model, tasks=("planted_error",), methods=("uniform",)))
    model = AutoModelForCausalLM.from_pretrained(bench_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(bench_model)
    values = []
    for item in make_items("planted_error", 6):
        ids, labels = tokens_and_labels(item, tokenizer)
        prompt = tokenizer(item.prompt)["input_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        surprisal = [-logps[len(prompt) + t - 1, token].item() for t, token in enumerate(ids)]
        values.append(slow_auroc(surprisal, labels))
    assert results["scores"]["surprisal"]["planted_error"]["auroc"]["mean"] == pytest.approx(np.mean(values), abs=1e-6)


@pytest.mark.slow
@pytest.mark.nightly
def test_quick(tmp_path):
    command = [sys.executable, "-m", "trl_credit.cli", "bench", "--quick", "--num_items", "12"]
    done = subprocess.run([*command, "--output_dir", str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Gradients of token credit may be biased estimates" in " ".join(done.stdout.split())
    results = json.loads((tmp_path / "bench.json").read_text())
    assert set(results["drift"]) == {"0", "3"}
    assert set(results["tasks"]) == set(variants())
    assert results["gradients"]["groups"] == 16
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "auroc.png",
        "drift.png",
        "gradients.png",
        "sweeps.png",
    }
    assert results["scores"]["gcpo"]["planted_error"]["auroc"]["mean"] > 0.6
    assert results["scores"]["rlcsd"]["planted_error"]["auroc"]["mean"] != 0.5
    served, left_out = served_methods("somewhere")
    assert results["settings"]["methods"] == list(served)
    assert set(results["scores"]) == {*served, "shuffled gcpo", *baselines()} == set(results["gradients"]["methods"])
    assert all(any(note.startswith(f"No {name}: it ") for note in results["notes"]) for name in left_out)
    assert results["methods"]["teacher"]["model"] == "the policy after 3 updates"
    assert str(tmp_path) not in (tmp_path / "bench.json").read_text()
    told = "After 3 updates, teacher: uniform with itself for the other model, so there is nothing to say of it here."
    assert told in results["sentences"]
    # Of the policy that is its own teacher: exactly uniform, without rounding
    last = results["drift"]["3"]["scores"]["teacher"]
    assert all(task["auroc"]["mean"] == 0.5 for task in last.values())
