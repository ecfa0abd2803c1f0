"""A recipe's `eval` mapping: evaluation within and after a training run, in one process (two: test_distributed.py)."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback

from trl_credit._util.files import RunFolderError
from trl_credit.evaluation import EvalConfig, evaluate
from trl_credit.evaluation.backends.base import Request, SamplingSettings
from trl_credit.recipe.evaluation import TrainerBackend, TrainingEvaluation
from trl_credit.recipe.recipe import Recipe
from trl_credit.train import main


RECIPE = {
    "model_name_or_path": "trl_credit:quickstart",
    "dtype": "float32",
    "dataset_name": "trl_credit:arithmetic",
    "generated_dataset_size": 50,
    "reward_funcs": ["trl_credit.toy.arithmetic.correct_answer"],
    "credit": {"method": "gcpo", "negative_prompt": "!{prompt}"},
    "learning_rate": 1e-4,
    "max_steps": 4,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 16,
    "max_completion_length": 40,
    "logging_steps": 3,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}

EVALUATION = {"tasks": ["trl_credit:arithmetic"], "generated_dataset_size": 6, "n": 3, "top_p": 1.0, "every": 2}


def recipe(tmp_path, **settings) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(tmp_path / "out"), **settings}))
    return ["--config", str(path)]


def train(tmp_path, **settings):
    tmp_path.mkdir(exist_ok=True)
    return main(recipe(tmp_path, **settings))


def samples(path):
    return [json.loads(line) for line in (path / "samples.jsonl").open()]


def test_an_evaluation_within_and_after_the_training(tmp_path, capsys):
    trainer = train(tmp_path / "a", eval=EVALUATION)
    assert capsys.readouterr().out.count("│ avg@3") == 2
    folder = tmp_path / "a" / "out" / "eval"
    assert sorted(path.name for path in folder.iterdir()) == ["step-2", "step-4"]
    assert (folder / "step-4" / "report.html").exists()
    entries = [entry for entry in trainer.state.log_history if "eval_trl_credit:arithmetic/avg@3" in entry]
    assert [entry["step"] for entry in entries] == [2, 4]
    results = json.loads((folder / "step-4" / "results.json").read_text())
    part = results["tasks"]["trl_credit:arithmetic"]
    assert entries[1]["eval_trl_credit:arithmetic/avg@3"] == part["avg"]
    assert entries[1]["eval_trl_credit:arithmetic/stderr"] == part["stderr"]
    # The training is the one without
    plain = train(tmp_path / "b")
    theirs = load_file(tmp_path / "b" / "out" / "model.safetensors")
    for name, parameter in load_file(tmp_path / "a" / "out" / "model.safetensors").items():
        assert torch.equal(parameter, theirs[name])
    ours = [entry for entry in trainer.state.log_history if entry not in entries]
    times = ("time", "per_second")
    for a, b in zip(ours, plain.state.log_history, strict=True):
        assert {k: v for k, v in a.items() if not any(t in k for t in times)} == {
            k: v for k, v in b.items() if not any(t in k for t in times)
        }
    # And the evaluation that of the saved model
    config = EvalConfig(
        model=str(tmp_path / "a" / "out"),
        output_dir=str(tmp_path / "c"),
        max_tokens=40,
        **{name: value for name, value in EVALUATION.items() if name != "every"},
    )
    alone = evaluate(config)
    assert samples(tmp_path / "c") == samples(folder / "step-4")
    assert samples(folder / "step-2") != samples(folder / "step-4")
    assert alone["tasks"] == results["tasks"]


def test_a_resumed_training_does_not_evaluate_twice(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "eval": EVALUATION}
    train(tmp_path, **settings)
    path = tmp_path / "out" / "eval" / "step-2" / "samples.jsonl"
    (tmp_path / "out" / "eval" / "step-2" / "results.json").unlink()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]))
    resumed = train(tmp_path, **settings, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert path.read_text() == "".join(lines)
    session = json.loads(path.with_name("results.json").read_text())["session"]
    assert session["samples"] == 18 - 7
    # Exact resume: the same weights at the end, whose evaluation is there
    final = json.loads((tmp_path / "out" / "eval" / "step-4" / "results.json").read_text())
    assert final["session"]["samples"] == 0
    assert resumed.state.log_history[-1]["step"] == 4


def test_the_samples_of_another_training_make_way(tmp_path, caplog):
    train(tmp_path, eval=EVALUATION, max_steps=2)
    before = samples(tmp_path / "out" / "eval" / "step-2")
    train(tmp_path, eval=EVALUATION, max_steps=2, learning_rate=1e-3)
    assert "the samples of an earlier run are replaced" in caplog.text
    assert samples(tmp_path / "out" / "eval" / "step-2") != before


def evaluation_of(settings, tmp_path, **fields):
    script_args, training_args, *_ = Recipe.read(recipe(tmp_path, eval=settings, **fields))
    return TrainingEvaluation.from_recipe(script_args.eval, script_args, training_args)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**EVALUATION, "evry": 2}, "`eval`: unknown field 'evry'. Did you mean 'every'"),
        ({**EVALUATION, "every": 0}, "`eval`: `every` must be at least 1, got 0"),
        ({**EVALUATION, "model": "x"}, "`eval`: `model` has no effect in a training run"),
        ({**EVALUATION, "backend": "vllm"}, "`eval`: `backend` has no effect in a training run"),
        ({**EVALUATION, "temperature": -1.0}, "`eval`: `temperature` must be non-negative"),
        ({**EVALUATION, "tasks": ["aime42"]}, "unknown task 'aime42'"),
        ({"n": 2}, "aime24=FILE.jsonl"),  # its default tasks, offline
    ],
)
def test_wrong_mappings(settings, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, eval=settings)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_json_and_yaml(tmp_path):
    script_args, *_ = Recipe.read([*recipe(tmp_path), "--eval", json.dumps(EVALUATION)])
    assert script_args.eval == EVALUATION
    script_args, *_ = Recipe.read([*recipe(tmp_path), "--eval", "{tasks: [aime24], prompts: no, top_p: 5e-1}"])
    assert script_args.eval == {"tasks": ["aime24"], "prompts": "no", "top_p": 0.5}
    with pytest.raises(ValueError, match="`eval` is not valid YAML"):
        Recipe.read([*recipe(tmp_path), "--eval", "{"])


def test_what_the_recipe_sets_holds_for_its_evaluation(tmp_path):
    fields = {"system_prompt": "Be brief.", "prompt_template": "Q: {problem}", "max_completion_length": 77}
    fields["problem_column"] = "problem"
    path = tmp_path / "x.jsonl"
    path.write_text('{"problem": "1+1", "answer": "2"}\n')
    found = evaluation_of({"tasks": [str(path)]}, tmp_path, **fields)
    assert found.tasks[0].problems[0].prompt == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 1+1"},
    )
    assert found.config.sampling().max_tokens == 77
    own = evaluation_of({"tasks": [str(path)], "prompt_template": "{problem}!", "max_tokens": 5}, tmp_path, **fields)
    assert own.tasks[0].problems[0].prompt[1]["content"] == "1+1!"
    assert own.config.sampling().max_tokens == 5
    preset = evaluation_of({"tasks": [str(path)], "preset": "dapo"}, tmp_path, **fields)
    assert preset.config.sampling().max_tokens == 20_480
    assert "Remember to put your answer" in preset.tasks[0].problems[0].prompt[0]["content"]
    only_problem = evaluation_of({"tasks": [str(path)]}, tmp_path, problem_column="problem")
    assert only_problem.tasks[0].problems[0].prompt == ({"role": "user", "content": "1+1"},)
    plain = {"plain_prompts": True, "prompt_template": "{problem}=", "problem_column": "problem"}
    assert evaluation_of({"tasks": [str(path)]}, tmp_path, **plain).tasks[0].problems[0].prompt == "1+1="
    ready_made = evaluation_of({"tasks": [str(path)]}, tmp_path)
    assert "\\boxed{}" in ready_made.tasks[0].problems[0].prompt[0]["content"]


class FakeVLLM:
    """As TRL's `VLLMGeneration`: one set of sampling parameters for a call."""

    def __init__(self):
        self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty = 0.9, 0.8, 5, None, 1.1
        self.max_completion_length, self.generation_kwargs, self.calls = 99, {"x": 1}, []

    def sync_weights(self):
        pass

    def generate(self, prompts, images, num_generations, profiler):
        self.calls.append(
            (len(prompts), num_generations, self.temperature, self.top_p, self.top_k, self.max_completion_length)
        )
        self.calls[-1] += (self.generation_kwargs,)
        ids = [[*prompt[-1:] * (number % 3 + 1), *([1] if number % 2 else [])] for number, prompt in enumerate(prompts)]
        return None, ids, [[[0.0]] * len(row) for row in ids], None


def test_the_trainers_vllm_is_used_and_left_as_it_was(tmp_path):
    trainer = train(tmp_path, max_steps=1)
    trainer.use_vllm, trainer.vllm_generation = True, FakeVLLM()
    trainer._last_loaded_step = -1
    before = dict(vars(trainer.vllm_generation))
    backend = TrainerBackend(trainer)
    requests = [Request("t", i, 0, i, f"{i}+1=") for i in range(6)]
    sampling = backend.prepare(requests, SamplingSettings(temperature=0.3, top_p=0.5, max_tokens=3, stop=("==",)))
    found = {}
    backend.generate(requests, sampling, lambda request, generation: found.update({request.problem: generation}))
    assert trainer.vllm_generation.calls == [(6, 1, 0.3, 0.5, 0, 3, {"stop": ["=="]})]
    assert {k: v for k, v in vars(trainer.vllm_generation).items() if k != "calls"} == {
        k: v for k, v in before.items() if k != "calls"
    }
    assert found[0].text == "="
    assert found[2].text == ""  # cut at the stop text
    assert found[1].finish == "stop"
    assert found[2].finish == "length"
    assert backend.identity()["vllm"]
    trainer.args.vllm_max_model_length = 20
    assert backend.prepare(requests, SamplingSettings(temperature=1.0, max_tokens=50)).max_tokens == 20 - len("0+1=")


def test_an_evaluation_that_fails_does_not_end_the_training(tmp_path, caplog, capsys):
    """Within it; at the end, when the model is saved, the exit status says so."""
    (tmp_path / "out").mkdir(parents=True)
    (tmp_path / "out" / "eval").write_text("in the way")
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, eval=EVALUATION)
    assert caught.value.code == 1
    assert "Evaluation after update 2: `output_dir`: cannot write" in caplog.text
    assert "Training continues." in caplog.text
    assert "trl-credit train: evaluation: error: `output_dir`: cannot write" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_full_disk_stops_the_evaluation_after_its_batches(tmp_path):
    trainer = train(tmp_path, max_steps=1)
    backend = TrainerBackend(trainer, batch_size=2)
    requests = [Request("t", i, 0, i, f"{i}+1=") for i in range(6)]
    sampling = backend.prepare(requests, SamplingSettings(temperature=1.0, max_tokens=4))
    modes = []

    def emit(request, generation):
        modes.append(trainer.model.training)
        raise RunFolderError("full")

    with pytest.raises(RunFolderError, match="full"):
        backend.generate(requests, sampling, emit)
    assert modes == [False]  # in eval mode, and no further attempt to write
    assert trainer.model.training


def test_from_python_it_is_a_callback(tmp_path):
    """For trainers made in a script."""
    trainer = train(tmp_path, max_steps=1)
    trainer.remove_callback(PrinterCallback)
    config = EvalConfig(tasks=["trl_credit:arithmetic"], generated_dataset_size=2, n=2, max_tokens=40, report=False)
    evaluation = TrainingEvaluation(config)
    evaluation.attach(trainer)
    assert isinstance(evaluation, TrainerCallback)
    results = evaluation.evaluate()
    assert Path(trainer.args.output_dir, "eval", "step-1", "results.json").exists()
    assert results["model"] == "step 1"
    assert trainer.model.training
