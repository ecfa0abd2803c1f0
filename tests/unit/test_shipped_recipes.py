"""The shipped recipes."""

import dataclasses
import inspect
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
import support.recipes
import torch
import torch.distributed.launcher.api
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from helpers import ROOT
from peft import LoraConfig
from support.recipes import parsed, settings_of

from trl_credit import DGPO, GCPO, Uniform, build_credit
from trl_credit._util.arguments import parse_arguments
from trl_credit.comparison.plan import parse_methods
from trl_credit.data import prepare
from trl_credit.evaluation import EvalConfig
from trl_credit.evaluation.tasks import load_tasks
from trl_credit.extras.dynamic_sampling import check_reward_name
from trl_credit.model_files import resolve_model
from trl_credit.recipe.evaluation import TrainingEvaluation
from trl_credit.recipe.recipe import trainer_arguments
from trl_credit.rewards import build_reward
from trl_credit.toy.arithmetic import NEGATIVE_MARK


ACCELERATE = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))

# Those of image models have a file of their own, test_image_recipes.py
RECIPES = [path for path in support.recipes.RECIPES if "trainer" not in settings_of(path)]

NO_GPU = ["--use_cpu", "true", "--bf16", "false"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def paths(pattern: str) -> list[Path]:
    found = [path for path in RECIPES if path.match(pattern)]
    assert found
    return found


every_recipe = pytest.mark.parametrize("path", RECIPES, ids=name_of)


def header_of(path: Path) -> str:
    """The comment that a recipe opens with; a command that goes over several lines is on one."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return "\n".join(line.removeprefix("#").strip() for line in comment).replace("\\\n", " ")


def one_line(text: str) -> str:
    return " ".join(text.split())


def switch_off(path: Path, part: str) -> list[str]:
    """The options that the header gives for a part."""
    (options,) = re.findall(rf"^{part} +(--.*)$", header_of(path), flags=re.MULTILINE)
    return options.split()


def launched_with(path: Path) -> dict | None:
    """The accelerate config of the recipe's launch command."""
    match = re.search(r"accelerate launch --config_file (\S+)", header_of(path))
    return settings_of(ROOT / match[1]) if match else None


def test_all_recipes_are_found():
    names = {name_of(path).removeprefix("recipes/").removesuffix(".yaml") for path in RECIPES}
    methods = {"grpo", "dapo", "gcpo", "dgpo", "gcpo_lora", "dgpo_lora"}
    assert names >= {"quickstart", "smollm2", "dapo"}
    for size, expected in (("1.5b", methods), ("7b", methods), ("32b", methods - {"gcpo_lora"})):
        assert names >= {f"qwen2.5-{size}/{method}" for method in expected}


@every_recipe
def test_header_says_how_to_launch_it(path):
    header = header_of(path)
    assert "Launch:" in header
    assert "Hardware:" in header
    assert re.search(rf"--config {re.escape(name_of(path))}(\s|$)", header)
    for file in re.findall(r"[\w./-]+\.(?:yaml|py)\b", header):
        folders = (ROOT, path.parent, ROOT / "recipes" / "accelerate")
        assert any((folder / file).is_file() for folder in folders), file


@every_recipe
def test_recipe_parses(path):
    settings = settings_of(path)
    script_args, training_args, model_args, _ = parsed(path)
    known = vars(script_args) | vars(training_args) | vars(model_args)
    changed = {"use_cpu", "bf16", "credit", "report_to"}
    for name, value in settings.items():
        assert known[name] == value or name in changed, name
        assert not (isinstance(value, str) and re.fullmatch(r"[-+]?\d[\d.]*(e[-+]?\d+)?", value)), f"{name} is text"
    assert ("credit" in settings) != ("compare" in settings)
    if "credit" in settings:
        assert training_args.credit == build_credit(settings["credit"]).to_dict()
    if "compare" in settings:
        methods, labels = parse_methods(settings["compare"]["methods"])
        assert all(build_credit(method.credit) for method in methods)
        assert settings["compare"].get("ceiling", labels[0]) in labels
    for spec in script_args.reward_funcs:
        assert callable(build_reward(spec, training_args.max_completion_length))
    assert training_args.reward_weights is None or len(training_args.reward_weights) == len(script_args.reward_funcs)


@every_recipe
def test_recipe_reaches_the_trainer(path, monkeypatch, tmp_path):
    model = settings_of(path)["model_name_or_path"]
    if model.startswith("./"):  # a step before makes it
        (tmp_path / model).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
    script_args, training_args, model_args, _ = arguments = parsed(path)
    problem, answer = script_args.problem_column or "prompt", script_args.answer_column or "answer"
    rows = {problem: ["1+1=", "2+2="] * 32, answer: ["2", "4"] * 32}
    monkeypatch.setattr(
        "trl_credit.recipe.recipe.load_splits", lambda *args, **kwargs: {"train": Dataset.from_dict(rows)}
    )
    made = trainer_arguments(*arguments)
    prompt = made["train_dataset"][0]["prompt"]
    assert "1+1=" in (prompt if isinstance(prompt, str) else prompt[-1]["content"])
    if "accuracy" in script_args.reward_funcs:
        assert made["train_dataset"]["solution"][:2] == ["2", "4"]
        text = prompt if isinstance(prompt, str) else " ".join(message["content"] for message in prompt)
        assert r"\boxed{" in text or model.endswith("-sums")  # which was taught to
    punishments = [f for f in made["reward_funcs"] if f.__name__ == "soft_overlong_punishment_reward"]
    assert len(punishments) == ("soft_overlong_punishment" in script_args.reward_funcs)
    for function in punishments:
        length = training_args.max_completion_length
        assert (function.max_completion_len, function.soft_punish_cache) == (length, length // 5)
    check_reward_name(training_args, [function.__name__ for function in made["reward_funcs"]])
    assert made["model"] == resolve_model(model_args.model_name_or_path)
    assert training_args.model_init_kwargs["dtype"] == settings_of(path)["dtype"]
    assert made["quantization_config"] is None
    if model_args.use_peft:
        assert isinstance(made["peft_config"], LoraConfig)
        assert made["peft_config"].target_modules == "all-linear"
        assert made["peft_config"].lora_dropout == 0.0  # dropout would be noise in the credit
    else:
        assert made["peft_config"] is None


@every_recipe
def test_batches_hold_whole_groups(path):
    """On one process, and on as many as the launch command starts."""
    args = parsed(path)[1]
    config = launched_with(path)
    for processes in {1, config["num_processes"] if config else 1}:
        rollout = args.per_device_train_batch_size * args.steps_per_generation * processes
        assert rollout % args.num_generations == 0
        assert args.steps_per_generation % args.gradient_accumulation_steps == 0


@pytest.mark.parametrize("path", paths("qwen2.5-*/*.yaml"), ids=name_of)
def test_batches_are_as_the_comments_say(path):
    args = parsed(path)[1]
    processes = launched_with(path)["num_processes"]
    update = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    rollout = args.per_device_train_batch_size * args.steps_per_generation * processes
    text, header = path.read_text(), header_of(path)
    assert re.findall(r"= (\d+) completions per update", text) == [str(update)]
    assert f"x {args.per_device_train_batch_size} x {processes} GPU" in text
    if rollout != update:
        assert f"= {rollout} completions per rollout, {rollout // args.num_generations} prompts" in text
    # The launch on another number of GPUs
    for gpus, options in re.findall(r"^(1|8) GPUs?:((?:.|\n(?!\w))*)", header, flags=re.MULTILINE):
        overrides = re.findall(r"(--\w+) (\w+)", options)
        other = parsed(path, *itertools.chain(*overrides))[1]
        assert other.per_device_train_batch_size * other.gradient_accumulation_steps * int(gpus) == update
        assert other.per_device_train_batch_size * other.steps_per_generation * int(gpus) == rollout


@every_recipe
def test_lengths_fit_together(path):
    settings = settings_of(path)
    args = parsed(path)[1]
    # Lengths are the run's, and so stay right when `--max_completion_length` changes
    assert all(isinstance(spec, str) for spec in settings["reward_funcs"])
    if args.use_vllm and args.vllm_mode == "colocate":
        assert args.vllm_max_model_length > args.max_completion_length
    if args.use_vllm and args.vllm_mode == "server":
        context = re.search(r"vllm serve (\S+) .*--max-model-len (\d+)", header_of(path))
        assert context[1] == settings["model_name_or_path"]
        assert int(context[2]) > args.max_completion_length


@every_recipe
def test_updates_are_not_lost_in_bfloat16(path):
    """Weights in bfloat16 are trained only where DeepSpeed or FSDP keeps them in float32 too."""
    settings = settings_of(path)
    if settings["dtype"] == "bfloat16" and not settings.get("use_peft"):
        assert launched_with(path)["distributed_type"] in ("DEEPSPEED", "FSDP")


@pytest.mark.parametrize("path", [p for m in ("gcpo", "dgpo") for p in paths(f"qwen2.5-*/{m}*.yaml")], ids=name_of)
def test_credit_recipes_keep_the_published_settings(path):
    args = parsed(path)[1]
    if "gcpo" in path.stem:
        assert build_credit(args.credit) == GCPO()
        published = {"loss_type": "dapo", "epsilon_high": 0.28, "weight_decay": 0.01, "num_generations": 8}
    else:
        assert build_credit(args.credit) == DGPO()
        published = {"loss_type": "grpo", "epsilon_high": None, "weight_decay": 0.1, "num_generations": 16}
    published |= {"epsilon": 0.2, "beta": 0.0, "temperature": 1.0, "importance_sampling_level": "token"}
    assert {name: getattr(args, name) for name in published} == published
    if not path.stem.endswith("_lora"):
        assert args.learning_rate == 1e-6
    assert bool(args.dynamic_sampling) == ("gcpo" in path.stem)
    if "gcpo" in path.stem:
        assert (args.dynamic_sampling_reward, args.dynamic_sampling_range) == ("accuracy", None)
        assert "dynamic sampling (groups of accuracy 0 or 1 are left out and replaced)" in one_line(header_of(path))
        assert not parsed(path, *switch_off(path, "Without dynamic sampling:"))[1].dynamic_sampling


@pytest.mark.parametrize("path", [p for m in ("grpo", "dapo") for p in paths(f"qwen2.5-*/{m}.yaml")], ids=name_of)
def test_baselines_are_uniform(path):
    args = parsed(path)[1]
    assert build_credit(args.credit) == Uniform()
    if path.stem == "grpo":
        assert (args.loss_type, args.epsilon_high, args.beta) == ("grpo", None, 0.001)
        assert not args.dynamic_sampling


# DAPO: each part and what it is when it is off
PARTS = {
    "clip-higher": ("epsilon_high", 0.28, 0.2),
    "token-level loss": ("loss_type", "dapo", "grpo"),
    "overlong filtering": ("mask_truncated_completions", True, False),
    "soft overlong punishment": ("reward_weights", [1.0, 0.5], [1.0]),
    "no KL penalty": ("beta", 0.0, 0.001),
    "dynamic sampling": ("dynamic_sampling", True, False),
}

DAPO = paths("dapo.yaml")

ACCURACY = {"quickstart": "trl_credit.toy.arithmetic.correct_answer", "Qwen": "accuracy"}


@pytest.mark.parametrize("path", DAPO, ids=name_of)
def test_dapo_has_all_its_parts(path):
    script_args, args, model_args, _ = parsed(path)
    assert build_credit(args.credit) == Uniform()
    assert {name: getattr(args, name) for name, _, _ in PARTS.values()} == {n: on for n, on, _ in PARTS.values()}
    assert (args.epsilon, args.importance_sampling_level, args.scale_rewards) == (0.2, "token", "group")
    accuracy = ACCURACY["quickstart" if "quickstart" in model_args.model_name_or_path else "Qwen"]
    assert script_args.reward_funcs == [accuracy, "soft_overlong_punishment"]
    assert args.dynamic_sampling_reward == accuracy.rpartition(".")[-1]
    assert (args.dynamic_sampling_range, args.dynamic_sampling_max_rounds) == (None, None)
    # Where every update is on-policy, no ratio is clipped
    assert args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("path", DAPO, ids=name_of)
def test_each_part_of_dapo_is_switched_off_as_the_header_says(path, part):
    script_args, args, _, _ = parsed(path, *switch_off(path, part))
    for other, (name, on, off) in PARTS.items():
        assert getattr(args, name) == (off if other == part else on), name
    assert ("soft_overlong_punishment" in script_args.reward_funcs) == (part != "soft overlong punishment")
    assert len(args.reward_weights) == len(script_args.reward_funcs)


def test_dapo_takes_token_credit():
    path = ROOT / "recipes" / "dapo.yaml"
    lines = [line for line in header_of(path).splitlines() if "--credit" in line]
    options = [shlex.split(line.removeprefix("Credit:")) for line in lines]
    methods = [build_credit(parsed(path, *line)[1].credit) for line in options]
    assert methods == [GCPO(negative_prompt=NEGATIVE_MARK + "{prompt}"), DGPO()]


@pytest.mark.parametrize("path", paths("qwen2.5-*/*.yaml"), ids=name_of)
def test_long_runs_can_be_resumed(path):
    args, header = parsed(path)[1], one_line(header_of(path))
    assert args.enable_jit_checkpoint
    assert args.save_strategy == "steps"
    assert not args.save_only_model
    assert "Resume: the launch command and --resume_from_checkpoint auto. SIGTERM" in header
    assert ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in header) == (launched_with(path)["num_processes"] > 1)
    # What the launcher itself starts has a grace period, which must be there to set
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in inspect.getsource(torch.distributed.launcher.api)


@pytest.mark.parametrize("path", paths("qwen2.5-*/*.yaml"), ids=name_of)
def test_the_header_says_how_to_evaluate(path, tmp_path, monkeypatch):
    """With the prompts of the training, after it as well as in it."""
    monkeypatch.chdir(ROOT)
    script_args, args = parsed(path)[:2]
    pattern = r"Evaluate: trl-credit eval (.*)\nor in the run itself: --eval '(.*)'"
    command, mapping = re.search(pattern, header_of(path)).groups()
    (config,) = parse_arguments(shlex.split(command), (EvalConfig,), "trl-credit eval")
    assert config.model == args.output_dir
    problems = tmp_path / "x.jsonl"
    problems.write_text('{"problem": "1+1", "answer": "2"}\n')
    tasks = [f"{task}={problems}" for task in config.tasks]
    alone = load_tasks(dataclasses.replace(config, tasks=tasks))
    within = TrainingEvaluation.from_recipe({**json.loads(mapping), "tasks": tasks}, script_args, args)
    assert within.tasks == alone
    assert [task.name for task in alone] == ["aime24", "aime25"]
    (trained,) = prepare(
        Dataset.from_list([{script_args.problem_column: "1+1"}]),
        problem_column=script_args.problem_column,
        system_prompt=script_args.system_prompt,
        prompt_template=script_args.prompt_template,
    )
    assert list(alone[0].problems[0].prompt) == trained["prompt"]
    assert (within.every, within.config.n, config.n) == (100, 32, 32)


@pytest.mark.parametrize("credit", ["uniform", "dgpo"])
def test_quickstart_switches_methods(credit):
    path = ROOT / "recipes" / "quickstart.yaml"
    assert f"--credit {credit}" in path.read_text()
    assert parsed(path, "--credit", credit)[1].credit["method"] == credit
    # the embedded model understands no English
    assert build_credit(parsed(path)[1].credit) == GCPO(negative_prompt=NEGATIVE_MARK + "{prompt}")


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_accelerate_config(path):
    text = path.read_text()
    assert text.startswith("# ")
    config = load_config_from_file(str(path))
    machines, processes = {
        "one_gpu": (1, 1),
        "ddp_cpu": (1, 2),
        "zero3_multinode": (4, 32),
    }.get(path.stem, (1, 8))
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.mixed_precision == ("no" if path.stem == "ddp_cpu" else "bf16")
    assert config.use_cpu == (path.stem == "ddp_cpu")
    assert config.distributed_type.value == {
        "one_gpu": "NO",
        "ddp": "MULTI_GPU",
        "ddp_cpu": "MULTI_GPU",
        "fsdp2": "FSDP",
    }.get(path.stem, "DEEPSPEED")
    if path.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(path.stem[4])
        assert config.deepspeed_config["deepspeed_multinode_launcher"] == "standard"  # else accelerate wants pdsh
    if machines > 1:
        assert config.main_process_ip
        assert config.main_process_port


def test_accelerate_configs_are_found():
    names = {path.stem for path in ACCELERATE}
    assert names == {"one_gpu", "ddp", "zero2", "zero3", "fsdp2", "zero3_multinode", "ddp_cpu"}
