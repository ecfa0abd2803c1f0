"""`trl-credit bench --true` on the embedded model."""

import json
import math
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import ROOT

from trl_credit._util.files import RunFolderError
from trl_credit.bench.true import samples as module
from trl_credit.bench.true.cli import main
from trl_credit.bench.true.config import AdviceConfig, TrueConfig
from trl_credit.bench.true.run import run
from trl_credit.evaluation.backends.transformers import TransformersBackend
from trl_credit.values.store import ValueFolder, read_values


SMALL = {"num_prompts": 3, "num_generations": 4, "methods": ["forking"], "sketch": 512, "most": 16}


def settings(path, **changes):
    return TrueConfig(**(SMALL | {"output_dir": str(path), "stderr": 0.2} | changes))


def values_in(path):
    return pq.read_table(path / "values.parquet").to_pydict()


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A run whose values are from continuations only, and its results."""
    path = tmp_path_factory.mktemp("sampled")
    return path, run(settings(path, bookkeeping="none"))


def test_a_stopped_run_goes_on_where_it_was(sampled, tmp_path, monkeypatch):
    whole, _ = sampled
    add, calls = ValueFolder.add_draws, []

    def stopped(self, rows):
        add(self, rows)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    config = settings(tmp_path, bookkeeping="none", batch_size=64)
    monkeypatch.setattr(module, "CHUNK", 128)
    with monkeypatch.context() as patch:
        patch.setattr(ValueFolder, "add_draws", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    there = (tmp_path / "draws.jsonl").read_text().splitlines()
    assert len(there) == 256
    with open(tmp_path / "draws.jsonl", "a") as file:
        file.write(there[0][:20])  # a line that was being written
    asked = []
    generate = TransformersBackend.generate
    monkeypatch.setattr(
        TransformersBackend, "generate", lambda self, r, *rest: (asked.extend(r), generate(self, r, *rest))[1]
    )
    run(settings(tmp_path, bookkeeping="none", batch_size=64))
    done = {(row["prefix"], row["draw"]) for row in map(json.loads, there)}
    assert asked
    assert not done & {(request.task, request.index) for request in asked}
    # With other batches and a stop in between, the values are those of the run that was made at once
    assert values_in(tmp_path) == values_in(whole)


def test_scored_again_without_sampling(sampled, tmp_path, monkeypatch):
    path, results = sampled
    monkeypatch.setattr(TransformersBackend, "generate", lambda *_: pytest.fail("it samples"))
    again = run(
        TrueConfig(
            **{name: SMALL[name] for name in ("methods", "sketch")},
            values=str(path),
            output_dir=str(tmp_path),
        )
    )
    for name in ("samples", "truth", "scores", "gradients"):
        assert json.dumps(again[name]) == json.dumps(results[name])
    other = run(TrueConfig(methods=["gcpo"], gradients=False, values=str(path), output_dir=str(tmp_path)))
    assert "gcpo" in other["scores"]
    assert other["scores"]["uniform"]["correlation"]["mean"] == results["scores"]["uniform"]["correlation"]["mean"]


def test_continuations_agree_with_the_books(tmp_path):
    """The mean reward of sampled continuations, and the product of the policy's probabilities of the right rest."""
    shared = {"gradients": False, "certain": 1.0, "num_prompts": 4, "every": ";|="}
    run(settings(tmp_path / "exact", **shared))
    run(settings(tmp_path / "sampled", **shared, bookkeeping="none", least=64, most=64))
    (samples, exact, _), (others, drawn, _) = (read_values(tmp_path / name) for name in ("exact", "sampled"))
    assert [s.token_ids for s in samples] == [s.token_ids for s in others]
    found = {}
    for sample, a, b in zip(samples, exact, drawn, strict=True):
        for tokens, value, mean, error, source in zip(a.tokens, a.mean, b.mean, b.stderr, b.source, strict=True):
            if source == "sampled":
                found[sample.prompt, sample.token_ids[:tokens]] = (mean - value, error, value)
    differences, errors, values = np.array(list(found.values())).T
    assert len(found) > 20
    assert ((values > 0.05) & (values < 0.95)).sum() >= 5
    scores = differences / errors
    assert np.abs(scores).max() < 4
    assert (np.abs(scores) <= 2).mean() > 0.9
    assert abs(scores.mean()) < 4 / math.sqrt(len(scores))


def test_results(sampled):
    path, results = sampled
    assert results["samples"]["completions"] == len(pq.read_table(path / "groups.parquet")) == 24
    assert results["samples"]["groups"] == 6  # two of each prompt
    assert results["gradients"]["prompts"] == 3
    assert set(results["scores"]) == set(results["methods"])
    assert set(results["gradients"]["methods"]) == {*results["methods"], "true"}
    assert results["scores"]["uniform"]["within"]["mean"] == 0
    text = (path / "bench_true.md").read_text()
    assert "Headroom:" in text
    assert "forking" in text
    assert json.loads((path / "bench_true.json").read_text()) == results


def test_what_is_scored_by_default(tmp_path):
    """Every method that can be, a combination, and only what is asked for."""
    found = settings(tmp_path, methods=None).credit_methods()
    assert {"gcpo", "certainty", "gcpo + certainty", "uniform"} <= set(found)
    assert "gcpo + certainty" not in settings(tmp_path, methods=["certainty"]).credit_methods()


def test_other_settings_of_the_samples_are_refused(sampled):
    path, _ = sampled
    with pytest.raises(RunFolderError, match=r"sampling.temperature: 1.0 -> 0.5"):
        run(settings(path, temperature=0.5))
    with pytest.raises(RunFolderError, match="seed: 0 -> 1"):
        run(settings(path, seed=1))


def test_advice_is_about_every_method_and_the_recipes_own(tmp_path):
    """Once each, with values at the ends of steps."""
    recipe = tmp_path / "recipe.yaml"
    text = (ROOT / "recipes" / "quickstart.yaml").read_text()
    own = '{method: gcpo, negative_prompt: "!{prompt}", top_mass: 0.7}'
    recipe.write_text(re.sub(r"^credit:.*$", f"credit: {own}", text, flags=re.MULTILINE))
    found = AdviceConfig(recipe=str(recipe), output_dir=str(tmp_path))
    assert (found.every, AdviceConfig.output_dir) == ("step", "outputs/advise")
    methods = found.credit_methods()
    assert next(iter(methods)) == "gcpo"
    assert {"certainty", "otb", "gcpo + certainty", "uniform"} <= {*methods}
    assert [part.top_mass for part in methods["gcpo + certainty"].components().values() if part.name == "gcpo"] == [0.7]
    assert methods["gcpo"].top_mass == 0.7
    assert found.takes_every_method()
    assert "certainty" not in TrueConfig(recipe=str(recipe), output_dir=str(tmp_path)).credit_methods()
    chosen = AdviceConfig(recipe=str(recipe), methods=["otb"], output_dir=str(tmp_path))
    assert "certainty" not in chosen.credit_methods()
    assert not chosen.takes_every_method()


def test_steps_of_a_recipe(tmp_path, capsys):
    words = ["--config", "recipes/quickstart.yaml", "--num_prompts", "2", "--num_generations", "2", "--every", "step"]
    main([*words, "--quick", "--no_gradients", "--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "bench_true.json").read_text())
    assert "gcpo" in results["scores"]
    assert "gradients" not in results
    assert results["samples"]["prefixes"] < 4 * 6
    assert "Token advantages against the true ones" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": "0"}, "`every`"),
        ({"least": 5}, "`least` must be an even number"),
        ({"most": 4}, "`most` must be at least `least`"),
        ({"sketch": 1000}, "power of two"),
        ({"model": "trl_credit:quickstart"}, "`dataset_name` is not set"),
        ({"served_model": "x"}, "`served_model` has no effect"),
        ({"base_url": []}, "`base_url` is an empty list"),
        (
            {"style": "plain", "model": "trl_credit:quickstart", "dataset_name": "trl_credit:arithmetic"},
            "`style` is for",
        ),
        ({"values": "nowhere"}, "has no effect with `values`"),
    ],
)
def test_settings_are_checked(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


@pytest.mark.parametrize(("name", "value"), [("bookkeeping", "none"), ("backend", "transformers"), ("every", "2")])
def test_settings_of_the_samples_have_no_effect_on_samples_that_are_there(name, value):
    with pytest.raises(ValueError, match=f"`{name}` has no effect with `values`"):
        TrueConfig(values="x", **{name: value})
