"""Real runs on two gloo processes: the same result whatever the launcher, and with and without the savings."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import qwen_vision
from helpers import save_tiny_model, save_tiny_moe
from safetensors.torch import load_file
from support.launch import DISTRIBUTED_TYPE, assert_histories_close, start, without_times
from support.tools import tool_calling_model

from trl_credit.records.record import read_parquet


pytestmark = pytest.mark.slow

CREDIT = {
    "uniform": "uniform",
    "gcpo": {"method": "gcpo", "negative_prompt": "wrong! {prompt}"},
    "gcpo_full": {"method": "gcpo", "negative_prompt": "wrong! {prompt}", "divergence": "full"},
    "dgpo": {"method": "dgpo", "temperature": 0.002},
}


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    return make_models(tiny_model, path)


def make_models(tiny_model, path):
    qwen_vision.tiny_model()[0].save_pretrained(path / "vision")
    tools, tokenizer = tool_calling_model(path / "tools")
    tokenizer.save_pretrained(tools)
    return {
        "tiny": tiny_model,
        "untied": save_tiny_model(path / "untied", tie=False),
        "moe": save_tiny_moe(path / "moe"),
        "tools": tools,
        "vision": str(path / "vision"),
    }


def load_parameters(path):
    """Under ZeRO-3, transformers writes the names of a vision-language model's text part with one `model.` too many."""
    return {name.replace("model.model.", "model."): parameter for name, parameter in load_file(path).items()}


def launch(backend, path, models, cases):
    """{case: (result, parameters)} of cases that all end well."""
    done = start(backend, path, models, cases)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    results = {}
    for name, settings in cases.items():
        result = json.loads((path / name / "result.json").read_text())
        assert result["num_processes"] == (1 if backend == "single" else 2)
        assert result["distributed_type"] == DISTRIBUTED_TYPE[backend]
        assert result["sharded"] == (backend in ("zero3", "zero3_init", "fsdp2"))
        saved = "adapter_model.safetensors" if settings.get("peft") else "model.safetensors"
        results[name] = result, load_parameters(path / name / saved)
        if backend == "single":
            result["initial"] = load_parameters(path / name / "initial" / saved)
    return results


# SGD: Adam's first steps turn rounding noise in near-zero gradients into full-size steps
SGD = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "num_iterations": 2, "loss_type": "dapo"}

# Compared with the single process
CASES = {
    **{name: {"credit": credit} for name, credit in CREDIT.items()},
    **{f"lora_{name}": {"credit": credit, "peft": True} for name, credit in CREDIT.items()},
    "uniform_saves": {
        "credit": "uniform", "skip_zero_advantage": True, "trim_padding": True, "reward": "half_constant",
    },
    "half_skipped": {"credit": CREDIT["dgpo"], "reward": "half_constant", "per_process": 2, "steps_per_generation": 2,
                     "gradient_accumulation_steps": 2},
    "idle_process_gcpo": {"credit": CREDIT["gcpo"], "reward": "second_half_constant", "shuffle_dataset": False},
    "idle_process_dgpo": {"credit": CREDIT["dgpo"], "reward": "second_half_constant", "shuffle_dataset": False},
    "kept_whole": {"credit": CREDIT["dgpo"], "skip_zero_advantage": False, "trim_padding": False,
                   "reward": "second_half_constant", "shuffle_dataset": False},
    "gradient_checkpointing": {"credit": CREDIT["dgpo"], "gradient_checkpointing": True},
    "gradient_checkpointing_lora": {"credit": CREDIT["dgpo"], "gradient_checkpointing": True, "peft": True},
    "accumulation": {"credit": CREDIT["gcpo"], "per_process": 2, "gradient_accumulation_steps": 2},
    "truncated": {"credit": CREDIT["gcpo"], "rollout": "truncated", "mask_truncated_completions": True},
    "tool_mask": {"credit": CREDIT["dgpo"], "rollout": "environment"},
    "vllm_ratios": {"credit": CREDIT["gcpo"], "rollout": "environment", "vllm": True,
                    "vllm_importance_sampling_mode": "token_truncate"},
    "untied": {"credit": CREDIT["dgpo"], "model": "untied"},
    "iterable": {"credit": CREDIT["gcpo"], "iterable": True, "shuffle_dataset": False},
    "sequence_ratio": {"credit": "uniform", "importance_sampling_level": "sequence", "loss_type": "luspo",
                       "skip_zero_advantage": True, "trim_padding": True, "reward": "half_constant"},
    "vision": {"credit": {"method": "gcpo", "negative_prompt": "blank_image"}, "model": "vision", "rollout": "vision"},
    "saved": {"credit": CREDIT["dgpo"], "num_iterations": 1, "max_steps": 4, "save_strategy": "steps", "save_steps": 2,
              "optim_args": "momentum=0.5"},
    # a momentum: torch cannot load the state of a sharded optimizer that has none
    "resumed": {"credit": CREDIT["dgpo"], "num_iterations": 1, "max_steps": 4, "resume": "saved/checkpoint-2",
                "optim_args": "momentum=0.5"},
    "dynamic": {"credit": CREDIT["gcpo"], "dynamic_sampling": True, "rollout": "placed", "reward": "even_prompt"},
    "dynamic_iterable": {"credit": CREDIT["dgpo"], "dynamic_sampling": True, "rollout": "placed",
                         "reward": "even_prompt", "iterable": True, "shuffle_dataset": False},
    # one group, of which each process has a half
    "dynamic_across": {"credit": "uniform", "dynamic_sampling": True, "rollout": "placed", "reward": "even_prompt",
                       "num_generations": 8, "num_iterations": 1},
    "otb": {"credit": "otb"},
    "certainty": {"credit": [CREDIT["gcpo"], "certainty"]},
    # one group, of which each process has a half
    "otb_across": {"credit": "otb", "rollout": "placed", "num_generations": 8, "reward": "calm"},
    "delta": {"credit": "delta"},
    "delta_across": {"credit": "delta", "rollout": "placed", "num_generations": 8, "reward": "calm"},
    # one process has nothing to run in the rollout stage, or for the signal of the list's first part
    **{f"idle_process_{name}": {"credit": credit, "reward": "second_half_constant", "shuffle_dataset": False}
       for name, credit in {"otb": "otb", "delta": "delta"}.items()},
    "idle_process_list": {"credit": [CREDIT["dgpo"], {"method": "teacher", "model": "untied", "coefficient": 0.2}],
                          "reward": "second_half_constant", "shuffle_dataset": False},
    "vine": {"credit": {"method": "vine", "every": 4, "count": 2}, "rollout": "generate", "continued": True,
             "reward": "calm"},
    "turn": {"credit": "turn", "rollout": "environment", "reward": "turns"},
    "gigpo": {"credit": "gigpo", "rollout": "environment", "reward": "turns"},
    "rlsd": {"credit": {"method": "rlsd", "column": "answer", "template": "{answer}!{prompt}"}},
    "teacher": {"credit": {"method": "teacher", "model": "untied", "coefficient": 0.2}},
    # one group, of which each process has a half: siblings lie on the other
    "rlcsd": {"credit": {"method": "rlcsd", "template": "[{solution}]{prompt}", "wrong_siblings": 2,
                         "reward_threshold": 0.4}, "rollout": "placed", "reward": "calm", "num_generations": 8},
    "sequence_token": {"credit": CREDIT["dgpo"], "importance_sampling_level": "sequence_token"},
}  # fmt: skip

# Not comparable between numbers of processes: generated, or with a term of each process's own micro-batch
OTHERS = {
    "nonfinite": {"credit": CREDIT["gcpo"], "nan_at": 1},  # transformers leaves a NaN out of a process's logged loss
    "environment": {"credit": "gcpo", "model": "tools", "environment": True, "rollout": "generate"},
    "moe": {"credit": CREDIT["gcpo"], "model": "moe", "router_aux_loss_coef": 0.1},
    "dynamic_generated": {"credit": CREDIT["gcpo"], "dynamic_sampling": True, "rollout": "generate",
                          "reward": "even_prompt"},
    "dynamic_environment": {"credit": "gcpo", "model": "tools", "environment": True, "rollout": "generate",
                            "dynamic_sampling": True, "reward": "even_prompt"},
    # groups of three on two processes: an even number of them in each round
    "dynamic_odd": {"credit": CREDIT["gcpo"], "dynamic_sampling": True, "rollout": "placed", "reward": "even_prompt",
                    "rows": 6, "num_generations": 3},
}  # fmt: skip

# The same run twice, the second time from a checkpoint in the middle of a generation batch of four updates
EXACT = {"rollout": "generate", "steps_per_generation": 2, "num_iterations": 2, "max_steps": 7, "save_strategy": "steps",
         "save_steps": 3, "optim_args": "momentum=0.5"}  # fmt: skip

RESUMED = {
    "uniform": {"credit": "uniform"},
    "lora": {"credit": CREDIT["dgpo"], "peft": True},
    "synced": {"credit": CREDIT["dgpo"], "sync_ref_model": True, "ref_model_sync_steps": 2},
    "dynamic": {"credit": CREDIT["gcpo"], "dynamic_sampling": True, "reward": "even_prompt"},
    "vine": {"credit": {"method": "vine", "every": 4, "count": 2}, "reward": "calm"},
}

EXACTLY = {
    f"exact_{name}{suffix}": EXACT | settings | ({"resume": f"exact_{name}/checkpoint-3"} if suffix else {})
    for name, settings in RESUMED.items()
    for suffix in ("", "_resumed")
}

# The same gradient with and without the savings, of every loss; of generation batches of two optimizer steps, which TRL
# draws from them within each process
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo", "vespo")

PAIRS = {
    f"{loss_type}_{'saved' if saves else 'whole'}": {
        "credit": CREDIT[("uniform", "gcpo", "dgpo")[i % 3]], "loss_type": loss_type, "reward": "half_constant",
        "skip_zero_advantage": saves, "trim_padding": saves, "per_process": 2, "steps_per_generation": 4,
        "gradient_accumulation_steps": 2, "max_steps": 4,
    }
    for (i, loss_type), saves in itertools.product(enumerate(LOSSES), (False, True))
}  # fmt: skip

# The same as `dgpo` and `lora_dgpo`, with evaluations within the training
EVALUATED = {f"evaluated_{name}": {**CASES[name], "evaluated": True} for name in ("dgpo", "lora_dgpo")}

# The same as `gcpo`, showing the credit of every update
SHOWN = {"logged": {**CASES["gcpo"], "credit_log_steps": 1, "log_completions": True, "num_completions_to_print": 0}}

MATRIX = {name: SGD | settings for name, settings in (CASES | OTHERS | EXACTLY | PAIRS | EVALUATED | SHOWN).items()}

SHARED = ("ddp", "zero2", "zero3", "fsdp2")


# Which backends run a case in `make test-all`; `make test-nightly` runs every case on all of them. Some cases depend on
# where parameters are, some on which process has which completion.
ALL, SHARDED = SHARED, ("zero3", "fsdp2")
CHOSEN = {
    **dict.fromkeys(("gcpo", "half_skipped", "saved", "resumed", "nonfinite", "dapo"), ALL),
    **dict.fromkeys(("dgpo", "lora_dgpo", "idle_process_gcpo", "tool_mask", "dynamic", "logged"), ("ddp", *SHARDED)),
    **dict.fromkeys(
        ("gcpo_full", "untied", "gradient_checkpointing", "gradient_checkpointing_lora", "vision"), SHARDED
    ),
    **dict.fromkeys(("moe", "dynamic_odd", "otb_across", "delta_across"), ("ddp", *SHARDED)),
    **dict.fromkeys(("teacher", "rlcsd", "vine"), ("ddp", *SHARDED)),
    **dict.fromkeys(("idle_process_otb", "idle_process_delta", "idle_process_list"), ("ddp", *SHARDED)),
    **dict.fromkeys(("lora_gcpo", "lora_uniform", "synced", "environment", "evaluated_lora_dgpo"), ("zero3",)),
    **dict.fromkeys(("accumulation", "evaluated_dgpo", "lora"), ("ddp", "fsdp2")),
}


def chosen(backend, case):
    name = case.removesuffix("_saved").removesuffix("_whole").removesuffix("_resumed").removeprefix("exact_")
    return backend == "single" or backend in CHOSEN.get(name, ("ddp",))


def crossed(backends, cases):
    """Every pair, of which those that are not chosen run at night."""
    return pytest.mark.parametrize(
        ("backend", "case"),
        [
            pytest.param(backend, case, marks=() if chosen(backend, case) else pytest.mark.nightly)
            for backend, case in itertools.product(backends, cases)
        ],
    )


@pytest.fixture(scope="module")
def matrix(models, tmp_path_factory, request):
    """A backend's cases from one launch, even where it fails."""
    results, path = {}, tmp_path_factory.mktemp("matrix")
    nightly = any(item.get_closest_marker("nightly") for item in request.session.items)

    def run(backend):
        assert results.get(backend, True), f"the launch on {backend} failed"
        if backend not in results:
            results[backend] = None
            cases = {case: settings for case, settings in MATRIX.items() if nightly or chosen(backend, case)}
            results[backend] = launch(backend, path / backend, models, cases)
        return results[backend]

    run.path = path.joinpath
    return run


def change_norms(ours, theirs, initial):
    """Norms of the difference of two runs' parameters and of the change that the second made."""
    difference = change = 0.0
    for name, value in initial.items():  # some backends save a tied head besides
        difference += float((ours[name].double() - theirs[name].double()).square().sum())
        change += float((theirs[name].double() - value.double()).square().sum())
    return difference**0.5, change**0.5


def assert_signals_equal(ours, theirs):
    """Contrasts and distances of the same completions, and the weights that they decide."""
    assert ours.keys() == theirs.keys()
    compared = 0
    for update, completions in theirs.items():
        assert ours[update].keys() == completions.keys()
        for key, (values, weights) in completions.items():
            our_values, our_weights = map(np.array, ours[update][key])
            np.testing.assert_allclose(our_values, values, rtol=1e-4 if update == "0" else 1e-3, atol=1e-5)
            gaps = np.diff(np.sort(values))
            if len(values) < 2 or gaps.min() > 2e-3:
                np.testing.assert_allclose(our_weights, weights, rtol=2e-2, atol=1e-3)
                compared += 1
    return compared


@crossed(SHARED, CASES)
def test_two_processes_are_one(backend, case, matrix):
    (ours, our_parameters), (theirs, their_parameters) = matrix(backend)[case], matrix("single")[case]
    assert_signals_equal(ours["updates"], theirs["updates"])
    assert_histories_close(ours["history"], theirs["history"], CASES[case].get("per_process", 1))
    difference, change = change_norms(our_parameters, their_parameters, theirs["initial"])
    assert change > 1e-4
    assert difference <= 1e-3 * change


@crossed(["single", *SHARED], LOSSES)
def test_savings_keep_the_gradient(backend, case, matrix):
    results = matrix(backend)
    saved, whole = (results[f"{case}_{kind}"] for kind in ("saved", "whole"))
    initial = matrix("single")["uniform"][0]["initial"]
    difference, change = change_norms(saved[1], whole[1], initial)
    assert change > 1e-4
    assert difference <= 2e-4 * change  # after four updates


@crossed(["zero2", "zero3", "fsdp2"], ["moe", "dynamic_odd"])
def test_backends_agree(backend, case, matrix):
    """On what is not the same in one process."""
    (ours, our_parameters), (theirs, their_parameters) = matrix(backend)[case], matrix("ddp")[case]
    assert_histories_close(ours["history"], theirs["history"])
    difference, change = change_norms(our_parameters, their_parameters, matrix("single")[case][0]["initial"])
    assert difference <= 1e-3 * change


@pytest.mark.parametrize("backend", SHARED)
def test_a_nan_of_one_process_skips_the_update_on_all(backend, matrix):
    (ours, our_parameters), (theirs, their_parameters) = matrix(backend)["nonfinite"], matrix("single")["nonfinite"]
    assert [entry.get("nonfinite_updates") for entry in ours["history"][:3]] == [None, 1.0, 1.0]
    difference, change = change_norms(our_parameters, their_parameters, theirs["initial"])
    assert change > 1e-4
    assert difference <= 1e-3 * change


@crossed(SHARED, RESUMED)
def test_resumed_exactly(backend, case, matrix):
    results = matrix(backend)
    (ours, our_parameters), (theirs, their_parameters) = results[f"exact_{case}_resumed"], results[f"exact_{case}"]
    for a, b in zip(without_times(ours["history"][:-1]), without_times(theirs["history"][:-1]), strict=True):
        assert a == b
    assert all((our_parameters[key] == parameter).all() for key, parameter in their_parameters.items())


@crossed(["single", *SHARED], EVALUATED)
def test_an_evaluation_within_the_training(backend, case, matrix):
    """It changes nothing of the training; the first one, of the same weights, is the same on every backend."""
    (ours, our_parameters), (theirs, their_parameters) = matrix(backend)[case], matrix(backend)[case.partition("_")[2]]
    entries = [entry for entry in ours["history"] if "eval_sums/avg@5" in entry]
    assert [entry["step"] for entry in entries] == [0, 2, 3]
    history = [entry for entry in ours["history"] if entry not in entries]
    assert without_times(history) == without_times(theirs["history"])
    assert all((our_parameters[key] == parameter).all() for key, parameter in their_parameters.items())
    samples = {
        (of, step): [json.loads(line) for line in (matrix.path(of) / case / "eval" / step / "samples.jsonl").open()]
        for of in {"single", backend}
        for step in ("step-0", "step-3")
    }
    assert samples[backend, "step-0"] == samples["single", "step-0"]
    assert len(samples[backend, "step-3"]) == 15
    assert samples[backend, "step-3"] != samples[backend, "step-0"]


@crossed(["single", *SHARED], ["logged"])
def test_credit_is_shown(backend, case, matrix):
    """The run is the one that shows nothing; the table has the credit of every process's completions."""
    results = matrix(backend)
    (ours, our_parameters), (plain, parameters) = results[case], results["gcpo"]
    assert without_times(ours["history"]) == without_times(plain["history"])
    assert all((our_parameters[key] == parameter).all() for key, parameter in parameters.items())
    for step in range(1, 4):
        folder = matrix.path(backend) / "logged"
        table = pd.read_parquet(folder / "completions" / f"completions_{step:05d}.parquet")
        alone = pd.read_parquet(matrix.path("single") / "logged" / "completions" / f"completions_{step:05d}.parquet")
        assert table["credit/effective_fraction"].notna().tolist() == (table["advantage"] != 0).tolist()
        columns = ["prompt", "completion", "advantage", "credit/effective_fraction"]
        one, other = (t[columns].sort_values(columns[:2]).reset_index(drop=True) for t in (table, alone))
        pd.testing.assert_frame_equal(one, other, rtol=1e-3)
        records, _ = read_parquet(folder / "credit" / f"step-{step:06d}.parquet")
        assert len(records) == 4
        assert (folder / "credit" / f"step-{step:06d}.html").exists()


@pytest.mark.parametrize("backend", ["single", *SHARED])
def test_cases_are_what_they_say(backend, matrix):
    """The matrix would prove nothing if weights were uniform or nothing were skipped."""
    results = matrix(backend)

    def logged(case, key):
        return [entry[key] for entry in results[case][0]["history"] if entry.get(key) is not None]

    def run(*cases):
        return [case for case in cases if case in results]

    for case in run("gcpo", "gcpo_full", "dgpo", "lora_gcpo", "tool_mask", "vision", "environment"):
        assert max(logged(case, "credit/weight_std")) > 0.05, case
    for case in run("uniform_saves", "half_skipped", "idle_process_gcpo", "bnpo_saved", "sequence_ratio"):
        assert 0.2 < np.mean(logged(case, "credit/skipped_fraction")) < 0.8, case
    for case in run("dgpo"):
        assert logged(case, "credit/kept_fraction") == [1.0, 1.0]
    for case in run("vllm_ratios"):
        assert max(logged(case, "sampling/importance_sampling_ratio/max")) > 1.0
    for case in run("moe"):
        assert min(logged(case, "aux_loss")) > 0
    for case in run(
        "dynamic",
        "dynamic_iterable",
        "dynamic_across",
        "dynamic_generated",
        "dynamic_odd",
        "dynamic_environment",
    ):
        assert max(logged(case, "dynamic_sampling/rounds")) > 1, case
        assert max(logged(case, "dynamic_sampling/too_easy")) > 0, case
    for case in run("dynamic_odd") if backend != "single" else ():
        assert max(logged(case, "dynamic_sampling/prompts_drawn")) % 2 == 0
    assert len(results["resumed"][0]["history"]) >= 4
    difference, change = change_norms(
        results["resumed"][1], results["saved"][1], matrix("single")["saved"][0]["initial"]
    )
    assert difference <= 1e-3 * change


def test_uniform_is_trl_bit_for_bit_on_two_processes(models, tmp_path):
    settings = {"rollout": "generate", "per_process": 1, "gradient_accumulation_steps": 2, "num_iterations": 2}
    settings["loss_type"] = "grpo"
    pairs = {"full": settings, "lora": {**settings, "beta": 0.1, "peft": True}}
    cases = pairs | {f"trl_{name}": {**case, "trl": True} for name, case in pairs.items()}
    results = launch("ddp", tmp_path / "run", models, cases)
    for name in pairs:
        (ours, our_parameters), (theirs, their_parameters) = results[name], results[f"trl_{name}"]
        history = [{k: v for k, v in e.items() if "credit/" not in k} for e in without_times(ours["history"])]
        assert history == without_times(theirs["history"])
        assert all((our_parameters[key] == parameter).all() for key, parameter in their_parameters.items())


def test_zero3_partitioned_as_it_is_loaded(models, matrix, tmp_path):
    """The reference is whole also when the policy, a path or an object, never was on any one process."""
    dgpo = {"credit": CREDIT["dgpo"], **SGD}
    results = launch("zero3_init", tmp_path / "run", models, {"path": dgpo, "object": {**dgpo, "as_object": True}})
    theirs, their_parameters = matrix("single")["dgpo"]
    for ours, our_parameters in results.values():
        assert_signals_equal(ours["updates"], theirs["updates"])
        difference, change = change_norms(our_parameters, their_parameters, theirs["initial"])
        assert difference <= 1e-3 * change


@pytest.mark.parametrize(
    "backend", ["ddp", "zero3", *(pytest.param(b, marks=pytest.mark.nightly) for b in ("zero2", "fsdp2"))]
)
def test_a_failing_process_fails_the_job(backend, models, tmp_path):
    cases = {"failing": {**SGD, "credit": CREDIT["dgpo"], "reward": "failing"}}
    done = start(backend, tmp_path / "run", models, cases)
    assert done.returncode != 0
    assert "the reward of process 1 is out of order" in done.stderr


@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_one_process_is_told_to_end(backend, models, tmp_path):
    """Both finish the update, save and exit; resumed, the run is the one that was not told."""
    settings = {**SGD, **EXACT, "credit": CREDIT["gcpo"], "reward": "preempted", "save_steps": 100, "logging_steps": 2,
                "steps_per_generation": 1, "num_iterations": 1}  # fmt: skip
    stopped = {**settings, "enable_jit_checkpoint": True}
    done = start(backend, tmp_path / "run", models, {"run": stopped})
    assert done.returncode != 0
    assert "saved after update 3; exiting with code 143" in done.stderr
    assert done.stderr.count("(exitcode: 143)") or "exitcode  : 143" in done.stderr
    calm = {**settings, "reward": "calm"}
    shutil.move(tmp_path / "run" / "run", tmp_path / "stopped")
    cases = {"resumed": {**calm, "resume": str(tmp_path / "stopped" / "checkpoint-3")}, "whole": calm}
    results = launch(backend, tmp_path / "again", models, cases)
    (ours, our_parameters), (theirs, their_parameters) = results["resumed"], results["whole"]
    for a, b in zip(without_times(ours["history"][:-1]), without_times(theirs["history"][:-1]), strict=True):
        assert a == b
    assert all((our_parameters[key] == parameter).all() for key, parameter in their_parameters.items())


# What every process must find out together: `message` is the same on both
IN_VAIN = {
    "frozen": ({"frozen": True, "as_object": True, "credit": CREDIT["dgpo"]},
               "NothingTrainedError: No parameter of the model is trainable"),
    "infinite": ({"learning_rate": 1e30, "weight_decay": 1e30, "num_iterations": 1, "save_strategy": "steps",
                  "save_steps": 1},
                 "FloatingPointError: The parameter 'model.embed_tokens.weight' and"),
    "constant": ({"reward": "constant", "skip_zero_advantage": True, "trim_padding": True},
                 "NothingTrainedError: Nothing was trained: none of the 16 completions has an advantage"),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["ddp", "zero3", pytest.param("fsdp2", marks=pytest.mark.nightly)])
def test_runs_in_vain_and_damaged_checkpoints(backend, models, tmp_path):
    """Errors are every process's; a checkpoint that lacks a file of one process is left alone by both."""
    whole = {**SGD, **EXACT, "credit": CREDIT["gcpo"], "save_steps": 2, "max_steps": 4}
    cases = {name: {**SGD, **settings, "fails": True} for name, (settings, _) in IN_VAIN.items()} | {"run": whole}
    done = start(backend, tmp_path / "run", models, cases)
    assert done.returncode == 0, done.stderr[-6000:]
    for name, (_, message) in IN_VAIN.items():
        folder = tmp_path / "run" / name
        errors = {path.read_text() for path in folder.glob("error_*.txt")}
        assert len(errors) == 1 <= len(list(folder.glob("error_1.txt"))), (name, errors)
        assert errors.pop().startswith(message), name
        assert not list(folder.glob("checkpoint-*")), name
    saved = tmp_path / "run" / "run"
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (copy / "checkpoint-4" / "rng_state_1.pth").unlink()
    done = start(backend, tmp_path / "again", models, {"run": {**whole, "resume": "auto", "output_dir": str(copy)}})
    assert done.returncode == 0, done.stderr[-6000:]
    assert "checkpoint-4 is damaged: rng_state_1.pth is missing: skipping it" in done.stderr
    ours, theirs = (load_parameters(path / "model.safetensors") for path in (copy, saved))
    assert all((ours[name] == parameter).all() for name, parameter in theirs.items())
