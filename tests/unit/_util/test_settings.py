"""The table of ranges and known values."""

import dataclasses
import math

import numpy as np
import pytest
from helpers import ROOT, config
from support.settings import recipe
from transformers import TrainingArguments
from trl import GRPOConfig

from trl_credit import CreditGRPOConfig
from trl_credit._util.arguments import parse_arguments
from trl_credit._util.settings import INHERITED, check_output_dir, checked, types_of
from trl_credit.bench.run import BenchSettings
from trl_credit.comparison.plan import parse_seeds
from trl_credit.evaluation import EvalConfig
from trl_credit.evaluation.backends.base import SamplingSettings
from trl_credit.inspection.config import InspectConfig
from trl_credit.recipe.recipe import RECIPE_TYPES, recipe_types


NAN, INF = math.nan, math.inf

BASE = "output_dir: out\nuse_cpu: true\nbf16: false\n"


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
        ("system_prompt", True, "text, got True. Quote it if it is meant as text."),
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


def test_python_code_is_checked_before_trl_divides(tmp_path):
    for name in ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least"):
            config(tmp_path, **{name: 0})
    with pytest.raises(ValueError, match=r"`top_k=-1` \(all tokens\) only works with vLLM"):
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
    with pytest.raises(ValueError, match="`output_dir` is empty"):
        check_output_dir("")


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
    ("words", "message"),
    [
        (
            ["--name", "gcpo", "dgpo"],
            r"`name` takes one value, but 'dgpo' follows it\. .*--name '\[\"gcpo\", \"dgpo\"\]'",
        ),
        (["dgpo", "--name", "gcpo"], r"'dgpo' belongs to no field: write --FIELD dgpo\."),
        ([str(ROOT / "recipes"), "--name", "gcpo"], r"recipes' is a folder, and a recipe's name ends in \.yaml\."),
        ([str(ROOT / "README.md")], r"README\.md' is a file, and a recipe's name ends in \.yaml\."),
    ],
)
def test_words_that_belong_to_no_field(words, message):
    @dataclasses.dataclass
    class Named:
        name: str = ""

    with pytest.raises(ValueError, match=message):
        parse_arguments(words, (Named,), "test")
