"""Ranges of settings, what YAML makes of recipes, fields of other projects, and paths to one's own code."""

import asyncio
import dataclasses
import functools
import math
import textwrap

import numpy as np
import pytest
from helpers import config
from transformers import TrainingArguments
from trl import GRPOConfig

from trl_credit import CreditGRPOConfig, build_credit
from trl_credit._util.arguments import parse_arguments
from trl_credit._util.retired import ADVICE, RENAMED, close_field, retired_hint
from trl_credit._util.settings import INHERITED, check_output_dir, checked, types_of
from trl_credit._util.yaml import dump, load_mapping
from trl_credit.bench.run import BenchSettings
from trl_credit.comparison.plan import parse_seeds
from trl_credit.evaluation import EvalConfig
from trl_credit.evaluation.backends.base import SamplingSettings
from trl_credit.inspection.config import InspectConfig
from trl_credit.recipe.recipe import RECIPE_TYPES, Recipe, load_rollout, recipe_types
from trl_credit.rewards import build_reward


NAN, INF = math.nan, math.inf
BASE = "output_dir: out\nuse_cpu: true\nbf16: false\n"


def recipe(tmp_path, text, *words, base=BASE):
    path = tmp_path / "recipe.yaml"
    path.write_text(base + textwrap.dedent(text))
    return Recipe.read(["--config", str(path), *words]).fields()


# Ranges


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_generations", 0, "`num_generations` must be at least 2, got 0."),
        ("num_generations", 1, "at least 2, got 1."),
        ("num_generations", True, "a whole number, at least 2, got True."),
        ("num_generations_eval", 0, "at least 1, got 0."),
        ("per_device_train_batch_size", 0, "at least 1, got 0."),
        ("per_device_train_batch_size", 1.5, "a whole number, at least 1, got 1.5."),
        ("per_device_eval_batch_size", -1, "at least 1, got -1."),
        ("gradient_accumulation_steps", 0, "at least 1, got 0."),
        ("generation_batch_size", 0, "at least 1, got 0."),
        ("steps_per_generation", 0, "at least 1, got 0."),
        ("max_completion_length", 0, "at least 1, got 0."),
        ("max_steps", 1.5, "a whole number, at least 1, or -1 for whole epochs, got 1.5."),
        ("max_steps", 0, "at least 1, or -1 for whole epochs, got 0."),
        ("max_steps", -2, "at least 1, or -1 for whole epochs, got -2."),
        ("num_train_epochs", -1, "non-negative, got -1."),
        ("num_train_epochs", INF, "finite, got inf."),
        ("learning_rate", -1e-6, "non-negative, got -1e-06."),
        ("learning_rate", INF, "finite, got inf."),
        ("learning_rate", NAN, "a non-negative number, got nan."),
        ("weight_decay", NAN, "a non-negative number, got nan."),
        ("weight_decay", -0.1, "non-negative, got -0.1."),
        ("adam_beta1", -0.1, "at least 0 and below 1, got -0.1."),
        ("adam_beta2", 1, "at least 0 and below 1, got 1."),
        ("adam_epsilon", -1, "non-negative, got -1."),
        ("max_grad_norm", -1, "non-negative, got -1."),
        ("warmup_steps", -1, "non-negative, got -1."),
        ("save_steps", -3, "non-negative, got -3."),
        ("logging_steps", -1, "non-negative, got -1."),
        ("eval_steps", -1, "non-negative, got -1."),
        ("seed", -1, "between 0 and 2**32 - 1, got -1."),
        ("dataloader_num_workers", -1, "at least 0, got -1."),
        ("epsilon", -0.2, "non-negative, got -0.2."),
        ("epsilon_high", -0.2, "non-negative, got -0.2."),
        ("delta", 0, "positive, got 0."),
        ("beta", -1, "non-negative, got -1."),
        ("num_iterations", 0, "at least 1, got 0."),
        ("temperature", 0, "positive, got 0."),
        ("temperature", "warm", "a positive number, got 'warm'."),
        ("top_p", 2, "above 0 and at most 1, got 2."),
        ("top_p", 0, "above 0 and at most 1, got 0."),
        ("top_k", -5, "at least 0 (0 is all tokens; so is -1, with `use_vllm`), got -5."),
        ("min_p", 3, "between 0 and 1, got 3."),
        ("repetition_penalty", 0, "positive, got 0."),
        ("top_entropy_quantile", 1.5, "between 0 and 1, got 1.5."),
        ("entropy_coef", NAN, "a number, got nan."),
        ("sapo_temperature_pos", 0, "positive, got 0."),
        ("ref_model_mixup_alpha", 2, "between 0 and 1, got 2."),
        ("ref_model_sync_steps", 0, "at least 1, got 0."),
        ("vllm_gpu_memory_utilization", 1.5, "above 0 and at most 1, got 1.5."),
        ("vllm_tensor_parallel_size", 0, "at least 1, got 0."),
        ("vllm_server_port", 70_000, "between 1 and 65535, got 70000."),
        ("pad_to_multiple_of", 0, "at least 1, 'auto' or unset, got 0."),
        ("reward_weights", ["heavy"], "a list of numbers, got ['heavy']."),
        ("reward_weights", [NAN], "a list of numbers, got [nan]."),
        ("lora_r", 0, "at least 1, got 0."),
        ("lora_alpha", 0, "at least 1, got 0."),
        ("lora_dropout", 1, "at least 0 and below 1, got 1."),
        ("test_split_size", 1.5, "a share between 0 and 1 or a number of rows, got 1.5."),
        ("generated_dataset_size", 0, "at least 1, got 0."),
        ("max_nonfinite_updates", 0, "at least 1, got 0."),
        ("credit_cache_gib", INF, "finite, got inf."),
        ("dynamic_sampling_max_rounds", 1, "at least 2, as the first round replaces nothing, got 1."),
        ("bf16", 3, "true, false or unset, got 3."),
        ("use_vllm", "maybe", "true or false, got 'maybe'."),
        ("system_prompt", True, "text, got True. Put it in quotes, if it is meant as text."),
        ("system_prompt", ["a"], "text, got ['a']."),
        ("output_dir", {"a": 1}, "text, got {'a': 1}."),
        ("generation_kwargs", 3, "a mapping, got 3."),
    ],
)
def test_what_is_out_of_range_is_refused(name, value, message):
    with pytest.raises(ValueError, match=f"^`{name}` must be ") as raised:
        checked({name: value}, recipe_types())
    assert str(raised.value).endswith(message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scale_rewards", "gdpo", "GDPO is `multi_objective_aggregation: normalize_then_sum`"),
        ("scale_rewards", "groups", "Did you mean 'group'?"),
        ("loss_type", "dap", "Did you mean 'dapo'?"),
        ("loss_type", None, "Known: bnpo"),
        ("importance_sampling_level", "seqence", "Did you mean 'sequence'?"),
        ("multi_objective_aggregation", "sum", "Did you mean 'sum_then_normalize'?"),
        ("vllm_mode", "sever", "Did you mean 'server'?"),
        ("eval_strategy", "step", "Did you mean 'steps'?"),
        ("save_strategy", "epochs", "Did you mean 'epoch'?"),
        ("lr_scheduler_type", "cosin", "Did you mean 'cosine'?"),
        ("optim", "adamw", "PyTorch's is `adamw_torch_fused`"),
        ("report_to", "wnadb", "Did you mean 'wandb'?"),
        ("report_to", ["tensorbord"], "Did you mean 'tensorboard'?"),
        ("dtype", "bf16", "Known: auto, bfloat16"),
        ("log_level", "inf", "Did you mean 'info'?"),
        ("on_reward_error", "skip", "Known: exclude, raise"),
    ],
)
def test_what_is_no_known_value_is_refused(name, value, message):
    with pytest.raises(ValueError, match=f"^`{name}`: unknown value ") as raised:
        checked({name: value}, recipe_types())
    if not isinstance(value, list):
        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", -1), ("max_grad_norm", 0), ("max_grad_norm", INF), ("learning_rate", 0), ("epsilon", 0),
        ("epsilon", INF), ("epsilon_high", 5.0), ("delta", None), ("save_steps", 0.1), ("save_steps", 0), ("eval_steps", 0),
        ("save_total_limit", -1), ("logging_steps", 0.5), ("warmup_steps", 0.1), ("top_k", 0), ("top_k", None),
        ("top_k", -1), ("min_p", 0), ("min_p", None), ("top_p", 1), ("top_p", 1e-6), ("num_generations_eval", 1),
        ("entropy_coef", -0.01), ("top_entropy_quantile", 0.0), ("pad_to_multiple_of", 8), ("pad_to_multiple_of", "auto"),
        ("scale_rewards", True), ("scale_rewards", False), ("scale_rewards", "none"), ("report_to", "all"),
        ("report_to", []), ("report_to", ["wandb", "tensorboard"]), ("reward_weights", [1, -0.5]), ("reward_weights", None),
        ("test_split_size", 0.1), ("test_split_size", 64), ("fsdp", True), ("fsdp", "full_shard"), ("deepspeed", "ds.json"),
        ("deepspeed", {"a": 1}), ("credit", {"method": "dgpo"}), ("reward_funcs", ["accuracy", {"name": "judged"}]),
        ("bf16", None), ("include_num_input_tokens_seen", "no"), ("vllm_importance_sampling_clip_max", INF),
        ("beta", 0), ("seed", 0), ("num_completions_to_print", None), ("resume_from_checkpoint", True),
    ],
)  # fmt: skip
def test_what_trl_gives_a_meaning_is_taken_as_it_is(name, value):
    found = checked({name: value}, recipe_types())[name]
    assert found == value
    assert type(found) is type(value)


def test_every_default_is_in_its_range():
    for kind in RECIPE_TYPES:
        values = {
            f.name: f.default for f in dataclasses.fields(kind) if f.init and f.default is not dataclasses.MISSING
        }
        for name, value in checked(values, types_of(kind)).items():
            assert value is values[name], name


def test_the_table_has_only_fields_that_there_are():
    assert set(INHERITED) <= set(recipe_types())
    numbers = {
        f.name for f in dataclasses.fields(GRPOConfig) if f.type in (int, float, int | None, float | None) and f.init
    }
    # Those that the table leaves to their types: any finite number means something
    assert numbers - set(INHERITED) <= {"local_rank", "entropy_coef", "entropy_coef_min", "entropy_coef_max"}


def test_all_violations_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match="must be") as raised:
        recipe(tmp_path, "num_generations: 0\nlora_r: 0\ngenerated_dataset_size: 0\n", "--epsilon", "-1")
    for name in ("num_generations", "lora_r", "generated_dataset_size", "epsilon"):
        assert f"`{name}` must be" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_line_mends_a_recipe(tmp_path):
    assert recipe(tmp_path, "num_generations: 0\n", "--num_generations", "4")["num_generations"] == 4


def test_python_code_is_checked_before_trl_divides(tmp_path):
    for name in ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least"):
            config(tmp_path, **{name: 0})
    with pytest.raises(ValueError, match="`top_k` -1 is vLLM's word"):
        config(tmp_path, top_k=-1)
    with pytest.raises(ValueError, match="`epsilon` must be non-negative"):
        dataclasses.replace(config(tmp_path, generation_batch_size=None), epsilon=-1)


def test_python_code_may_use_other_types(tmp_path):
    args = config(
        tmp_path,
        reward_weights=np.array([1.0, 2.0]),
        max_steps=np.int64(3),
        learning_rate=np.float32(0.5),
        report_to=None,
    )
    assert args.reward_weights == [1.0, 2.0]
    assert (args.max_steps, args.learning_rate) == (3, 0.5)
    assert CreditGRPOConfig(output_dir=tmp_path / "x", use_cpu=True, bf16=False).output_dir


def test_trl_keeps_its_own_configuration(tmp_path):
    assert GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, save_steps=-3).save_steps == -3
    assert TrainingArguments(output_dir=str(tmp_path), use_cpu=True, adam_beta2=1).adam_beta2 == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvalConfig(model="m", n=0), "`n` must be at least 1, got 0."),
        (
            lambda: EvalConfig(model="m", top_p=2.0, max_retries=-1),
            "`top_p` must be .* `max_retries` must be at least 0",
        ),
        (lambda: EvalConfig(model="m", preset="dap"), "`preset`: unknown value 'dap'. Did you mean 'dapo'"),
        (lambda: SamplingSettings(temperature=-1), "`temperature` must be non-negative, got -1."),
        (lambda: SamplingSettings(temperature=1.0, top_k=-1), "`top_k` must be at least 0"),
        (
            lambda: InspectConfig(model="m", prompts=["a"], num_generations=1, show=-1),
            "`num_generations` .* `show` must",
        ),
        (lambda: InspectConfig(model="m", prompts=["a"], dtype="fp16"), "`dtype`: unknown value 'fp16'"),
        (
            lambda: BenchSettings(num_items=1, groups=-1),
            "`num_items` must be at least 2, .* `groups` must be at least 0",
        ),
        (lambda: BenchSettings(seed=-1), "`seed` must be between"),
        (lambda: BenchSettings(dtype="half"), "`dtype`: unknown value 'half'"),
        (lambda: parse_seeds(0), "`seeds` must be at least 1, got 0."),
        (lambda: parse_seeds([0, -1]), "`seeds` must be a number of seeds or a list of seeds from 0"),
    ],
)
def test_every_command_has_the_same_check(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_output_dir(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    check_output_dir(tmp_path / "new" / "folder")
    check_output_dir(tmp_path)
    assert not (tmp_path / "new").exists()
    for path, message in (
        ("file", "it is a file, not a folder"),
        ("file/below", r"file' is a file"),
        ("link", "is a link to nothing"),
    ):
        with pytest.raises(ValueError, match=f"`output_dir`: cannot write to .*{message}. Name another folder"):
            check_output_dir(tmp_path / path)


# YAML


def test_texts_stay_texts(tmp_path):
    found = recipe(
        tmp_path,
        """
        eval_strategy: no
        system_prompt: off
        run_name: 007
        model_revision: 1e10
        project: yes
        report_to: none
        learning_rate: 1e-6
        reward_weights: [5e-1, 1]
        trim_padding: no
        log_completions: on
        dataloader_pin_memory: off
        dynamic_sampling: null
        max_steps: 1_000
        logging_steps: 1e1
        """,
    )
    assert found["eval_strategy"] == "no"
    assert found["system_prompt"] == "off"
    assert (found["run_name"], found["model_revision"], found["project"]) == ("007", "1e10", "yes")
    assert found["learning_rate"] == 1e-6
    assert found["reward_weights"] == [0.5, 1]
    assert (found["trim_padding"], found["log_completions"], found["dataloader_pin_memory"]) == (False, True, False)
    assert (found["max_steps"], found["logging_steps"]) == (1000, 10)


def test_words_among_arguments_of_other_code_are_booleans(tmp_path):
    found = recipe(
        tmp_path,
        """
        chat_template_kwargs: {enable_thinking: no, text: "no", deep: [{a: off}, yes]}
        gradient_checkpointing_kwargs: {use_reentrant: off}
        accelerator_config: {split_batches: no}
        resume_from_checkpoint: no
        reward_funcs: [{name: x, label: no}]
        eval: {tasks: [no], chat_template_kwargs: {enable_thinking: on}}
        """,
    )
    assert found["chat_template_kwargs"] == {"enable_thinking": False, "text": "no", "deep": [{"a": False}, True]}
    assert found["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert found["accelerator_config"].split_batches is False
    assert found["resume_from_checkpoint"] == "false"
    assert found["reward_funcs"] == [{"name": "x", "label": False}]
    assert found["eval"] == {"tasks": ["no"], "chat_template_kwargs": {"enable_thinking": True}}


def test_one_value_where_a_list_is_wanted(tmp_path):
    found = recipe(tmp_path, "reward_weights: 5e-1\nreward_funcs: accuracy\nlora_target_modules: all-linear\n")
    assert found["reward_weights"] == [0.5]
    assert found["reward_funcs"] == ["accuracy"]
    assert found["lora_target_modules"] == "all-linear"  # ModelConfig takes it out of its list


@pytest.mark.parametrize(("kind", "name"), [(InspectConfig, "prompts"), (EvalConfig, "tasks")])
def test_lists_of_texts(kind, name, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"model: m\n{name}: [no, off, None, 007, 1e3, yes]\n")
    (settings,) = parse_arguments(["--config", str(path)], (kind,), "test")
    assert getattr(settings, name) == ["no", "off", "None", "007", "1e3", "yes"]


def test_an_evaluation_takes_its_recipe_as_training_does(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "output_dir: out\nproblem_column: q\nplain_prompts: no\nsystem_prompt: no\neval: {tasks: [007], n: 4}\n"
    )
    settings = EvalConfig(recipe=str(path))
    assert (settings.model, settings.system_prompt, settings.plain_prompts) == ("out", "no", None)
    assert (settings.tasks, settings.n) == (["007"], 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe must be a YAML mapping"),
        ("{}", "the recipe must be a YAML mapping"),
        ("- a", "the recipe must be a YAML mapping"),
        ("seed: 1\nseed: 2", "not valid YAML: 'seed' is there twice (line 2"),
        ("credit: {method: dgpo, method: gcpo}", "'method' is there twice (line 1"),
        ("a:\n\tb: 1", "not valid YAML: found character"),
        ("seed: [", "not valid YAML"),
        ("1: 2", "a field's name must be text, got 1 on line 1"),
        ("seed: *x", "undefined alias"),
        ("seed: 1\0", "not valid YAML"),
        ("seed: !!python/object:os.system 1", "could not determine a constructor"),
        ("env: 3", "`env` must be a mapping"),
    ],
)
def test_what_is_no_recipe(text, message, tmp_path):
    with pytest.raises(ValueError, match=r"^`") as raised:
        recipe(tmp_path, text, base="")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("run_name: caf\xe9\n".encode("latin-1"))
    (tmp_path / "bom.yaml").write_text("﻿" + BASE + "seed: 7\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        Recipe.read(["--config", str(tmp_path / "latin.yaml")])
    with pytest.raises(ValueError, match="cannot read"):
        Recipe.read(["--config", str(tmp_path)])
    assert Recipe.read(["--config", str(tmp_path / "bom.yaml")])[1].seed == 7
    with pytest.raises(ValueError, match="`--config` is there twice"):
        Recipe.read(["--config", str(tmp_path / "bom.yaml"), "--config", "b.yaml"])


def test_written_yaml_is_read_as_it_was():
    value = {
        "a": "no",
        "b": "1e-6",
        "c": 1e-6,
        "d": "007",
        "e": "true",
        "f": "null",
        "g": None,
        "h": INF,
        "i": ["~", "off", 1],
    }
    assert load_mapping(dump(value)) == value


# Fields of other releases and projects


FOREIGN = {
    "torch_dtype": ("float32", "`torch_dtype`: write `dtype: float32`"),
    "max_prompt_length": (512, "`max_prompt_length`: it is gone: TRL cuts no prompt"),
    "overwrite_output_dir": (True, "`overwrite_output_dir`: it is gone, and nothing in `output_dir` is deleted"),
    "dataset_prompt_column": ("problem", "`dataset_prompt_column`: write `problem_column: problem`"),
    "vllm_device": ("auto", "`vllm_device`: it is gone: vLLM shares"),
    "num_processes": (8, "`num_processes`: it belongs to the launch"),
    "dataset_configs": (["all"], "`dataset_configs`: it is `dataset_config`, one name: write `dataset_config: all`"),
    "use_liger_loss": (True, "`use_liger_loss`: it is gone"),
    "evaluation_strategy": ("no", "`evaluation_strategy`: write `eval_strategy: no`"),
    "per_gpu_train_batch_size": (4, "write `per_device_train_batch_size: 4`"),
    "warmup_ratio": (0.1, "write `warmup_steps: 0.1`"),
    "actor_rollout_ref": ({"model": {}}, "verl's sections have no counterpart"),
    "tokenizer": ("x", "`model_name_or_path` names both"),
    "lerning_rate": (1e-6, "`lerning_rate`: Did you mean 'learning_rate'"),
}


def test_foreign_fields_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match="unknown fields") as raised:
        recipe(tmp_path, dump({name: value for name, (value, _) in FOREIGN.items()}))
    message = str(raised.value)
    assert message.startswith(f"{len(FOREIGN)} unknown fields in the recipe. ")
    for _, part in FOREIGN.values():
        assert part in message
    assert "\n" not in message


def test_retired_names_are_not_fields_and_their_successors_are():
    known = {f.name for kind in RECIPE_TYPES for f in dataclasses.fields(kind)}
    assert not (set(RENAMED) | set(ADVICE)) & known
    assert set(RENAMED.values()) <= known
    for name in (*RENAMED, *ADVICE):
        for value in (1, ["a"], None):
            assert "{{" not in retired_hint(name, value)
    assert retired_hint("learning_rate") is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lerning_rate", "learning_rate"), ("learningrate", "learning_rate"), ("lora_alfa", "lora_alpha"),
        ("reward_func", "reward_funcs"), ("num_generation", "num_generations"), ("maxsteps", "max_steps"),
        # Alike, and of another meaning
        ("num_processes", None), ("max_prompt_length", None), ("dataset_prompt_column", None), ("min_steps", None),
        ("eval_batches", None), ("reward_scale", None), ("vllm_device", None), ("beta1", None), ("num_samples", None),
    ],
)  # fmt: skip
def test_a_nearest_field_is_really_near(name, meant):
    assert close_field(name, recipe_types()) == meant


# Paths to one's own code


MODULE = """
import functools
import beside

def unwrapped(function):
    def inner(*args, **kwargs):
        return function(*args, **kwargs)
    return inner

@unwrapped
def decorated(completions, **kwargs):
    return [0.5] * len(completions)

def plain(completions, factor=1.0, **kwargs):
    return [factor] * len(completions)

async def slow(completions, **kwargs):
    return [1.0] * len(completions)

class Reward:
    def __init__(self, factor=2.0, **kwargs):
        self.factor = factor
    def __call__(self, completions, **kwargs):
        return [self.factor] * len(completions)
    def method(self, completions, **kwargs):
        return [4.0] * len(completions)

reward = Reward(3.0)
part = functools.partial(plain, factor=5.0)

def make(factor):
    return functools.partial(plain, factor=factor)

def make_anything(**options):
    return functools.partial(plain, **options)

def no_reward():
    return 3

number = 3
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "broken.py").write_text("x = (")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "reward"),
    [
        ("./own_rewards.py:plain", 1.0),
        ("own_rewards.py:decorated", 0.5),
        ("own_rewards.decorated", 0.5),
        ("own_rewards:plain", 1.0),
        ("own_rewards.py:Reward", 2.0),
        ({"name": "own_rewards.py:Reward", "factor": 7.0}, 7.0),
        ("own_rewards.reward", 3.0),
        ("own_rewards.reward.method", 4.0),
        ("own_rewards.py:reward.method", 4.0),
        ("own_rewards.py:part", 5.0),
        ("own_rewards.py:slow", 1.0),
        ({"name": "own_rewards.py:plain", "factor": 6.0}, 6.0),
        ({"name": "own_rewards.py:reward", "other": 6.0}, 3.0),
        ({"name": "own_rewards.py:make", "factor": 8.0}, 8.0),
        ({"name": "own_rewards.py:make_anything", "factor": 9.0, "factory": True}, 9.0),
    ],
)
def test_rewards_by_path(spec, reward, own_code):
    rewards = build_reward(spec)(completions=["a", "b"], prompts=["", ""])
    if asyncio.iscoroutine(rewards):
        rewards = asyncio.run(rewards)
    assert rewards == [reward, reward]


def test_an_absolute_path(own_code, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert build_reward(f"{own_code}/own_rewards.py:plain")(completions=["a"]) == [1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_rewards.py:plan", "'own_rewards.py' has no 'plan'. Did you mean 'plain'?"),
        ("own_rewards.decoratd", "'own_rewards' has no 'decoratd'. Did you mean 'decorated'?"),
        ("./none.py:f", "there is no file './none.py' (looked from"),
        ("no_module:f", "No module named 'no_module'"),
        ("own_rewards.py", "'own_rewards.py' is a file: write own_rewards.py:NAME"),
        ("broken.py:f", "'broken.py' cannot be imported: SyntaxError"),
        ("own_rewards.py:number", "is no function, but int"),
        (
            "own_rewards.py:no_reward",
            "takes no `completions`, so that it was called to make a reward function; it made int",
        ),
        ("own_rewards.py:make", "missing 1 required positional argument: 'factor'"),
    ],
)
def test_paths_that_lead_nowhere(spec, message, own_code):
    with pytest.raises(ValueError, match="`reward_funcs`: ") as raised:
        build_reward(spec)
    assert message in str(raised.value)


def test_a_credit_method_from_a_file(own_code):
    (own_code / "own_method.py").write_text(
        "from dataclasses import dataclass\nfrom trl_credit.methods import GCPO\n\n\n@dataclass(frozen=True)\n"
        'class Mine(GCPO):\n    name = "mine"\n'
    )
    method = build_credit({"method": "./own_method.py:Mine", "top_fraction": 0.3})
    assert method.to_dict()["method"] == "./own_method.py:Mine"
    assert build_credit(method.to_dict()) == method
    with pytest.raises(ValueError, match="has no 'Mien'"):
        build_credit("./own_method.py:Mien")


def test_a_wrapped_function_with_wraps_keeps_its_columns(own_code):
    from trl_credit.rewards import required_columns

    def inner(completions, solution, **kwargs):
        return []

    @functools.wraps(inner)
    def outer(*args, **kwargs):
        return inner(*args, **kwargs)

    assert required_columns(outer) == ["solution"]


def test_a_rollout_function_from_a_file(own_code):
    (own_code / "own_rollout.py").write_text("def rollout(prompts, trainer):\n    return {}\n\n\nnumber = 3\n")
    assert load_rollout(None) is None
    assert load_rollout("./own_rollout.py:rollout")([], None) == {}
    with pytest.raises(ValueError, match=r"`rollout_func`: cannot load .* Did you mean 'rollout'"):
        load_rollout("own_rollout.py:rolout")
    with pytest.raises(ValueError, match="is no function, but int"):
        load_rollout("own_rollout:number")


def test_the_path_of_a_checkpoint_is_text(tmp_path):
    assert recipe(tmp_path, "resume_from_checkpoint: 0100")["resume_from_checkpoint"] == "0100"


def test_a_parameter_of_a_method_among_the_fields_of_inspect(capsys):
    from trl_credit.inspection import cli

    with pytest.raises(SystemExit):
        cli.main(["--entropy_exponent", "2"])
    assert "It is a parameter of a credit method: write --credit" in capsys.readouterr().err
