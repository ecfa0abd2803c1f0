"""Plans of recipes."""

import json
import re
import shlex
from dataclasses import replace

import pytest
import support.recipes
from helpers import ROOT
from support.planning import CONFIGS, plan_of, read_recipe, words_for
from support.recipes import settings_of

from trl_credit.planning import cli
from trl_credit.planning.cards import CARDS
from trl_credit.planning.from_recipe import read_run
from trl_credit.planning.held import held
from trl_credit.planning.layouts import LAYOUTS
from trl_credit.planning.plan import layout_for, make_plan
from trl_credit.planning.read import read
from trl_credit.planning.remedies import _more_gpus
from trl_credit.planning.report import duration


RECIPES = [str(path.relative_to(ROOT / "recipes")) for path in support.recipes.RECIPES]
DGPO = "qwen2.5-1.5b/dgpo.yaml"
# Twice the micro-batch of qwen2.5-7b/dgpo.yaml, with which it hardly fits
LARGE = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "16", "--steps_per_generation", "64")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_gets_an_answer(recipe):
    if "trainer" in settings_of(ROOT / "recipes" / recipe):
        with pytest.raises(ValueError, match="trains images, and the formulas here are for language models"):
            plan_of(recipe)
        return
    plan = plan_of(recipe, "--gpus", "32" if "32b" in recipe else "8")
    assert plan["fits"] or plan["close"]
    assert all(size > 0 for size in plan["memory"].values())
    assert sum(plan["memory"].values()) + plan["left"] == pytest.approx(plan["card"]["memory"])
    assert (ROOT / plan["launch"].split("--config_file ")[1].split()[0]).is_file()
    assert plan["completions"]["per_rollout"] % plan["completions"]["per_update"] == 0
    json.dumps(plan, allow_nan=False)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.startswith("qwen")])
def test_recipes_have_room_on_the_hardware_that_they_name(recipe):
    text = (ROOT / "recipes" / recipe).read_text()
    nodes, gpus, memory = re.search(r"# Hardware: (?:(\d) nodes of )?(\d+) GPUs?(?: of (\d+) GB)?", text).groups()
    server = "vllm_mode: server" in text  # on a node of its own
    card = {"40": "a100-40gb", "80": "a100-80gb", None: "h200"}[memory]
    file = re.search(r"recipes/accelerate/(\w+)\.yaml", text)[1]
    layout = {"one_gpu": "one", "zero3_multinode": "zero3"}.get(file, file)
    count = int(gpus) * (int(nodes or 1) - server)
    plan = plan_of(recipe, "--gpus", str(count), "--gpu", card, "--layout", layout)
    assert plan["fits"] and not plan["close"] and plan["engine_fits"], plan["left"]  # noqa: PT018


def test_layouts_grow_with_the_model():
    sizes = {"1.5b": "8", "7b": "8", "32b": "32"}
    names = [plan_of(f"qwen2.5-{size}/gcpo.yaml", "--gpus", gpus)["layout"] for size, gpus in sizes.items()]
    assert names == ["zero2", "zero3", "zero3"]
    assert plan_of("qwen2.5-1.5b/gcpo_lora.yaml", "--gpus", "1")["layout"] == "one"
    assert plan_of("qwen2.5-1.5b/gcpo_lora.yaml", "--gpus", "8")["layout"] == "ddp"


def test_a_layout_with_room_comes_before_one_that_is_too_close():
    """ZeRO-2 comes first, but here almost nothing is left beside it."""
    recipe, config, _ = read_recipe("qwen2.5-1.5b/gcpo.yaml")
    run = read_run(recipe, config)
    needs = sum(held(run, LAYOUTS["zero2"], 8, CARDS["h100"]).parts.values())
    card = replace(CARDS["h100"], memory=needs * 1.02)
    run = replace(run, engine="server")
    sizes = {name: held(run, LAYOUTS[name], 8, card) for name in ("zero2", "zero3")}
    while not sizes["zero2"].close:
        card = replace(card, memory=card.memory * 0.98)
        sizes = {name: held(run, LAYOUTS[name], 8, card) for name in ("zero2", "zero3")}
    assert sizes["zero2"].close
    assert sizes["zero3"].roomy
    assert layout_for(run, 8, card).name == "zero3"


def test_forced_layout():
    plan = plan_of(DGPO, "--layout", "ddp")
    assert plan["layout"] == "ddp"
    assert "--dtype float32" in plan["launch"]  # nothing else keeps float32 masters
    assert not plan["fits"]
    with pytest.raises(ValueError, match="`layout`: 'one' does not go with `gpus` 8"):
        plan_of(DGPO, "--layout", "one")


def test_gradients_that_wait():
    """FSDP2 has them whole in every micro-batch but the last, unless it is told not to."""
    words = ("qwen2.5-7b/gcpo.yaml", "--layout", "fsdp2")
    plan = plan_of(*words)
    assert plan["memory"]["gradients that wait for the last micro-batch"] == 2 * 7_615_616_512
    assert any("sync_each_batch" in note for note in plan["notes"])
    at_once = plan_of(*words, "--accelerator_config", '{"gradient_accumulation_kwargs": {"sync_each_batch": true}}')
    assert "gradients that wait for the last micro-batch" not in at_once["memory"]
    assert not any("sync_each_batch" in note for note in at_once["notes"])


def test_several_machines():
    plan = plan_of("qwen2.5-32b/gcpo.yaml", "--gpus", "32")
    assert plan["machines"] == 4
    assert "zero3_multinode.yaml --num_processes 32 --num_machines 4 --machine_rank RANK" in plan["launch"]
    assert "--num_machines" not in plan_of("qwen2.5-7b/gcpo.yaml")["launch"]
    with pytest.raises(ValueError, match=r"do not fill machines of 8.*use 8"):
        plan_of("qwen2.5-32b/gcpo.yaml", "--gpus", "12")


def test_completions():
    """More GPUs, more completions: the recipe gives those of a GPU."""
    assert plan_of("qwen2.5-7b/dgpo.yaml")["completions"] == {"per_update": 512, "per_rollout": 2048}
    assert plan_of("qwen2.5-7b/dgpo.yaml", "--gpus", "16")["completions"] == {"per_update": 1024, "per_rollout": 4096}


def test_reference():
    reference = 2 * 1_543_714_304
    parts = plan_of(DGPO)["memory"]
    assert [size for part, size in parts.items() if part.startswith("model beside the policy")] == [reference]
    both = plan_of(DGPO, "--beta", "0.01")["memory"]  # the penalty's reference is the method's
    assert [size for part, size in both.items() if part.startswith("model beside the policy")] == [reference]
    lora = plan_of(DGPO, "--beta", "0.01", "--use_peft", "true")["memory"]
    assert not [part for part in lora if part.startswith("model beside the policy")]


def test_teacher():
    teacher = json.dumps({"method": "teacher", "model": str(CONFIGS / "qwen2.5-7b")})
    parts = plan_of(DGPO, "--credit", teacher)["memory"]
    assert [size for part, size in parts.items() if part.startswith("model beside the policy")] == [2 * 7_615_616_512]


def test_engine():
    card = CARDS["h100"]
    colocate = plan_of(DGPO)
    assert colocate["memory"]["vLLM"] == pytest.approx(0.3 * card.memory)
    assert colocate["engine"]["engines"] == 8
    assert "vLLM" not in plan_of(DGPO, "--vllm_mode", "server")["memory"]
    two = plan_of("qwen2.5-7b/gcpo.yaml", "--vllm_tensor_parallel_size", "2")
    assert (two["engine"]["engines"], two["engine"]["gpus_of_each"]) == (4, 2)
    assert (
        two["engine"]["completions_at_a_time"] > 2 * plan_of("qwen2.5-7b/gcpo.yaml")["engine"]["completions_at_a_time"]
    )
    with pytest.raises(ValueError, match=r"`engine_gpus` \(4\) has no effect"):
        plan_of(DGPO, "--engine_gpus", "4")


def test_an_engine_that_does_not_start(capsys):
    """vLLM wants room for a sequence of the longest context, as long as the model allows if nothing is said."""
    words = ("qwen2.5-7b/gcpo.yaml", "--vllm_gpu_memory_utilization", "0.25", "--vllm_max_model_length")
    assert plan_of(*words, "10240")["engine_fits"]
    assert not plan_of(*words, "131072")["engine_fits"]
    packed = plan_of("qwen2.5-7b/dgpo_lora.yaml", "--load_in_4bit", "true", "--vllm_gpu_memory_utilization", "0.15")
    assert packed["engine_fits"]
    assert run_command(*words_for("qwen2.5-7b/gcpo.yaml", "--vllm_gpu_memory_utilization", "0.1")) == 1
    printed = capsys.readouterr().out
    assert "vLLM does not start, because its share does not hold the model" in printed
    assert "--vllm_tensor_parallel_size 4, with the layout zero" in printed
    assert "rollout" not in printed.split("completions per update")[1].split("Assumed")[0].replace("per rollout", "")


def test_a_share_is_raised_only_where_it_leaves_room():
    small = plan_of("qwen2.5-7b/gcpo.yaml", "--vllm_gpu_memory_utilization", "0.1")
    share = next(float(each.split()[1].rstrip(",")) for each in small["remedies"] if "utilization" in each)
    assert 0.2 <= share <= 0.4
    none = plan_of("qwen2.5-7b/gcpo.yaml", "--vllm_gpu_memory_utilization", "0.1", "--gpu", "rtx-4090")
    assert not any("utilization" in each for each in none["remedies"])


def test_a_server_that_does_not_hold_the_model():
    rows = ("--per_device_train_batch_size", "1")
    words = ("qwen2.5-32b/gcpo.yaml", "--gpus", "64", "--vllm_mode", "server", *rows, "--engine_gpus")
    plan = plan_of(*words, "1")
    assert (plan["fits"], plan["engine_fits"], plan["seconds"]) == (False, False, {})
    number = next(int(each.split()[1].rstrip(",")) for each in plan["remedies"] if each.startswith("--engine_gpus"))
    assert plan_of(*words, str(number))["engine_fits"]


def test_the_rollout_is_the_peak():
    """With an engine that sleeps in the updates, and nothing else in its phase but what is always held."""
    plan = plan_of(DGPO, "--vllm_enable_sleep_mode", "true", "--vllm_gpu_memory_utilization", "0.6")
    assert plan["peak"] == "rollout"
    assert plan["memory"]["vLLM"] == pytest.approx(0.6 * CARDS["h100"].memory)
    assert "activations" not in plan["memory"]
    asleep = plan_of(DGPO, "--vllm_enable_sleep_mode", "true", "--vllm_gpu_memory_utilization", "0.1")
    assert asleep["peak"] == "loss"
    assert "vLLM" not in asleep["memory"]


def test_the_step_is_the_peak():
    """DeepSpeed's float32 gradients, where a micro-batch is small."""
    words = ("--per_device_train_batch_size", "1", "--max_completion_length", "16", "--num_generations", "2")
    plan = plan_of("qwen2.5-7b/grpo.yaml", *words, "--gpus", "2", "--prompt_tokens", "16", "--vllm_mode", "server")
    assert plan["peak"] == "step"
    assert plan["memory"]["float32 copy of the gradients"] == 4 * 7_615_616_512 / 2


def test_gathered_weights():
    """ZeRO-3 gathers a model with adapters to merge them for vLLM; FSDP2 does not."""
    recipe, config, _ = read_recipe("qwen2.5-7b/dgpo_lora.yaml", "--vllm_enable_sleep_mode", "true")
    run = replace(read_run(recipe, config), engine_share=0.9)
    sizes = {name: held(run, LAYOUTS[name], 8, CARDS["h100"]) for name in ("zero3", "fsdp2")}
    assert {size.peak for size in sizes.values()} == {"rollout"}
    assert sizes["zero3"].parts["gathered weights"] == 2 * run.model.parameters
    assert "gathered weights" not in sizes["fsdp2"].parts


def test_transformers_cache():
    recipe, config, _ = read_recipe(DGPO, "--use_vllm", "false", "--ds3_gather_for_generation", "true")
    size = held(read_run(recipe, config), LAYOUTS["zero3"], 8, CARDS["h100"])
    rows, length = recipe.training.per_device_train_batch_size * recipe.training.steps_per_generation, 512 + 4096
    assert size.peak == "rollout"
    assert size.parts["keys and values"] == 2 * 2 * 28 * 2 * 128 * rows * length
    assert any("transformers generates" in note for note in plan_of(DGPO, "--use_vllm", "false")["notes"])


def test_kept_signals():
    """What the cache does not hold is computed again; in the CPU's memory it takes none of the GPU's."""
    words = ("qwen2.5-7b/dgpo.yaml", "--num_iterations", "4", "--credit_cache_gib")
    small, large = plan_of(*words, "1"), plan_of(*words, "1000")
    title = "signals kept for later iterations"
    assert small["memory"][title] == 2**30
    assert large["memory"][title] == 2 * 3584 * 256 * 8192
    assert small["seconds"]["credit"] > 1.5 * large["seconds"]["credit"]
    moved = plan_of(*words, "1000", "--credit_cache_device", "cpu")
    assert title not in moved["memory"]
    assert moved["seconds"] == large["seconds"]


def test_remedies():
    """Each by itself; more GPUs are enough as soon as the plan for them says so."""
    plan = plan_of(DGPO, "--gradient_checkpointing", "false")
    assert not plan["fits"]
    assert plan["remedies"][0] == "--gradient_checkpointing true, with the layout zero2"
    assert plan["remedies"][1].startswith("--per_device_train_batch_size")
    plan = plan_of("qwen2.5-32b/grpo.yaml", "--gpus", "8")
    more = next(each for each in plan["remedies"] if each.startswith("--gpus"))
    number = int(more.split()[1])
    after, before = (plan_of("qwen2.5-32b/grpo.yaml", "--gpus", str(each)) for each in (number, number // 2))
    assert after["fits"]
    assert not after["close"]
    assert not before["fits"] or before["close"]
    assert more.endswith(f", with the layout {after['layout']}")


@pytest.mark.parametrize(
    "words",
    [
        ("--gpu", "h100"),
        ("--gpu", "h100", "--layout", "fsdp2"),
        ("--gpu", "a100-40gb"),
        ("--gpus", "3", "--gpus_per_machine", "4"),
    ],
)
def test_remedies_can_be_pasted(words):
    """Each is a plan that fits, of as many completions."""
    recipe = "qwen2.5-7b/dgpo.yaml"
    words = (*words, *LARGE)
    if "3" in words:
        words = (*words, "--num_generations", "12")
    plan = plan_of(recipe, *words)
    assert plan["remedies"]
    for remedy in plan["remedies"]:
        options, _, layout = remedy.partition(", with the layout ")
        after = plan_of(recipe, *words, *shlex.split(options))
        assert after["fits"]
        assert not after["close"]
        assert after["layout"] == layout
        assert after["completions"] == plan["completions"]


def test_remedies_together():
    """Where no change alone is enough."""
    (remedy,) = plan_of("qwen2.5-7b/dgpo.yaml", "--gpu", "a100-40gb", *LARGE)["remedies"]
    assert "--per_device_train_batch_size 1" in remedy
    assert "--vllm_mode server" in remedy
    assert "--gradient_checkpointing" not in remedy  # it is on


@pytest.mark.parametrize(
    ("gpus", "per_machine", "counts"),
    [(1, 8, [2, 4, 8, 16]), (3, 8, [6, 24, 48]), (4, 8, [8, 16]), (8, 8, [16, 32]), (24, 8, [48])],
)
def test_counts_of_gpus_fill_machines(gpus, per_machine, counts):
    assert list(_more_gpus(gpus, per_machine))[: len(counts)] == counts


def test_a_recipe_with_a_size_of_its_generation_batch(tmp_path):
    """TRL takes it or the steps per generation, not both."""
    text = (ROOT / "recipes" / "qwen2.5-7b" / "dgpo.yaml").read_text()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(re.sub("steps_per_generation: .*", "generation_batch_size: 2048", text))
    words = ["--config", str(recipe), "--model_name_or_path", str(CONFIGS / "qwen2.5-7b"), *LARGE[:4]]
    plan = make_plan(*read(words))
    assert plan["completions"]["per_rollout"] == 2048
    assert plan["remedies"]
    assert "--steps_per_generation" not in " ".join(plan["remedies"])
    for remedy in plan["remedies"]:
        assert make_plan(*read([*words, *shlex.split(remedy.partition(", with")[0])]))["fits"]


def test_no_remedy():
    plan = plan_of("qwen2.5-7b/dgpo.yaml", "--gpu", "{memory: 2e9, flops: 1e12, bandwidth: 1e12, link: 1e10}")
    assert plan["remedies"] == []


def test_checkpointing_saves_memory():
    on, off = (plan_of(DGPO, "--gradient_checkpointing", value) for value in ("true", "false"))
    assert on["activations"] == off["activations"]
    assert on["memory"]["activations"] == on["activations"]["with checkpointing"]
    assert off["memory"]["activations"] == off["activations"]["without checkpointing"]
    assert off["memory"]["activations"] > 3 * on["memory"]["activations"]


def test_time():
    uniform, gcpo = (plan_of(DGPO, "--credit", name) for name in ("uniform", "gcpo"))
    assert uniform["seconds"]["credit"] == uniform["credit"]["of_step"] == 0
    assert 0.2 < gcpo["credit"]["of_update"] < 0.4
    assert gcpo["credit"]["of_step"] < gcpo["credit"]["of_update"]
    assert gcpo["seconds"]["loss"] == uniform["seconds"]["loss"]
    skipping = plan_of(DGPO, "--credit", "gcpo", "--zero_advantage", "0.5")
    assert skipping["seconds"]["credit"] == pytest.approx(gcpo["seconds"]["credit"] / 2)
    assert skipping["seconds"]["loss"] < gcpo["seconds"]["loss"]
    short = plan_of(DGPO, "--credit", "gcpo", "--mean_completion_tokens", "1000")
    assert short["seconds"]["rollout"] < gcpo["seconds"]["rollout"]
    assert short["memory"] == gcpo["memory"]


def test_continuations():
    vine = plan_of("quickstart.yaml", "--credit", "vine", "--steps", "10")
    times = vine["seconds"]["credit's continuations"] / vine["seconds"]["rollout"]
    assert times == pytest.approx(9 * (9 / 2 + 1 / 8))
    assert plan_of("quickstart.yaml", "--credit", "vine")["seconds"] == vine["seconds"]


def test_batches_are_those_of_all_processes():
    """With one process, 4 completions would be no whole group of 8."""
    words = ("--per_device_train_batch_size", "4", "--gpus", "2", "--num_generations", "8")
    assert read_recipe("quickstart.yaml", *words)[0].training.generation_batch_size == 8
    with pytest.raises(ValueError, match="must be divisible by num_generations"):
        plan_of("quickstart.yaml", *words[:2], "--gpus", "1", *words[4:])


def test_precision():
    """Weights are their own masters where the layout keeps none: float32 then, as the launch command says."""
    recipe, config, _ = read_recipe(DGPO)
    run = read_run(recipe, config)
    weights = {name: held(run, layout, 8, CARDS["h100"]).parts["weights"] for name, layout in LAYOUTS.items()}
    n = run.model.parameters
    assert weights == {"one": 4 * n, "ddp": 4 * n, "zero2": 2 * n, "zero3": n / 4, "fsdp2": n / 2}


def test_no_mixed_precision():
    """The launcher's files say bf16, and so would the run, unless the command says otherwise."""
    plan = plan_of("quickstart.yaml", "--gpus", "1")  # with `bf16: false` and `use_cpu: true`
    assert "--num_processes 1 --mixed_precision no -m" in plan["launch"]
    assert plan["launch"].endswith("--use_cpu false")
    for words in ("bf16's", "use_cpu"):
        assert any(words in note for note in plan["notes"])
    half = plan_of(DGPO, "--bf16", "false", "--fp16", "true")
    assert "--mixed_precision fp16" in half["launch"]
    plain = plan_of(DGPO)
    assert "--mixed_precision" not in plain["launch"]
    assert "--use_cpu" not in plain["launch"]
    recipe, config, _ = read_recipe(DGPO, "--bf16", "false")
    run = read_run(recipe, config)
    assert run.trained_in(LAYOUTS["ddp"]).compute_bytes == 4  # float32 weights, and no autocast


def test_launch_has_the_options_that_the_plan_was_made_with(tmp_path):
    folder = tmp_path / "my recipes"
    folder.mkdir()
    recipe = folder / "it's.yaml"
    recipe.write_text((ROOT / "recipes" / "quickstart.yaml").read_text())
    words = [
        "--config",
        str(recipe),
        "--gpus=2",
        "--json",
        "--steps",
        "3",
        "--credit",
        '{"method": "vine", "count": 2}',
    ]
    launch = make_plan(*read([*words, "--reward_funcs", "accuracy", "format", "--layout", "ddp"]))["launch"]
    found = shlex.split(launch)
    after = found[found.index("trl_credit.train") + 1 :]
    assert after[:4] == ["--config", str(recipe), "--credit", '{"method": "vine", "count": 2}']
    assert after[4:7] == ["--reward_funcs", "accuracy", "format"]
    assert "--num_processes 2" in launch
    assert not {"--json", "--steps", "--layout", "--gpus=2"} & set(found)


def test_uncounted():
    words = ("--use_liger_kernel", "true", "--optim", "adamw_torch_8bit", "--eval_strategy", "steps")
    note = next(note for note in plan_of(DGPO, *words)["notes"] if note.startswith("Not counted"))
    for name in ("use_liger_kernel", "adamw_torch_8bit", "evaluation"):
        assert name in note
    assert not any(note.startswith("Not counted") for note in plan_of(DGPO)["notes"])


def test_masks_take_whole_attention():
    flash, sdpa = (plan_of(DGPO, "--attn_implementation", name) for name in ("flash_attention_2", "sdpa"))
    assert sdpa["seconds"]["loss"] > flash["seconds"]["loss"]


def test_adapter_on_disk(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "base_model_name_or_path": str(CONFIGS / "smollm2"),
                "r": 4,
                "target_modules": ["q_proj"],
            }
        )
    )
    plan = plan_of("smollm2.yaml", "--model_name_or_path", str(tmp_path))
    assert plan["model"]["trained"] == 30 * 4 * (576 + 576)
    assert plan["model"]["parameters"] == 134_515_008


# The command


def run_command(*words):
    try:
        cli.main(list(words))
    except SystemExit as ended:
        return ended.code
    return 0


def test_command(capsys, tmp_path):
    file = tmp_path / "made" / "plan.json"
    assert run_command(*words_for(DGPO, "--gpu", "h200", "--output_file", str(file))) == 0
    printed = capsys.readouterr().out
    for text in (
        "Fits on 8 x h200",
        "optimizer",
        "Assumed, not measured",
        "recipes/accelerate/zero2.yaml",
        "Credit (dgpo) adds",
    ):
        assert text in printed
    written = json.loads(file.read_text())
    assert run_command(*words_for(DGPO, "--gpu", "h200", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == written


def test_command_that_does_not_fit(capsys):
    assert run_command(*words_for("qwen2.5-7b/dgpo.yaml", "--gpus", "1", "--gpu", "rtx-4090")) == 1
    printed = capsys.readouterr().out
    assert "Does not fit on 1 x rtx-4090" in printed
    assert "Launch" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpuz", "8"], "`gpuz`"),
        (["--gpu", "h10"], "there is no card 'h10'. Did you mean 'h100'"),
        (["--gpus", "0"], "`gpus` must be"),
        (["--gpus", "1000000000000"], "`gpus` must be"),
        (["--deepspeed", "ds.json"], "`deepspeed` ('ds.json') chooses a layout"),
        (["--fsdp", "full_shard offload"], "`fsdp` ('full_shard offload') chooses a layout"),
        (["--load_in_4bit", "true"], "`load_in_4bit` (true) quantizes weights"),
        (["--mean_completion_tokens", "99999"], "`mean_completion_tokens` (99999) is above"),
        (["--steps", "5"], "`steps` (5) has no effect"),
        (["--layout", "zero4"], "`layout`: unknown value 'zero4'"),
        (["--zero_advantage", "1"], "`zero_advantage` must be at least 0 and below 1"),
        (["--learning_rat", "1"], "learning_rate"),
        (["--credit", "gpco"], "gcpo"),
        (["--num_generations", "1"], "`num_generations` must be at least 2"),
        (["--model_name_or_path", "./nowhere"], "there is no folder './nowhere'"),
    ],
)
def test_errors(words, message, capsys):
    assert run_command("--config", str(ROOT / "recipes" / "quickstart.yaml"), *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("trl-credit plan: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        (DGPO, ["--vllm_tensor_parallel_size", "3"], "one of 1, 2, 4, 8"),
        (DGPO, ["--vllm_tensor_parallel_size", "8", "--gpus", "2"], r"\(8\) does not divide `gpus` \(2\)"),
        ("qwen2.5-1.5b/dgpo_lora.yaml", ["--load_in_8bit", "true"], "does not go with `vllm_mode: colocate`"),
    ],
)
def test_runs_that_trl_would_not_start(recipe, words, message):
    with pytest.raises(ValueError, match=message):
        plan_of(recipe, *words)


def test_durations():
    assert [duration(each) for each in (0.0004, 0.81, 90, 600)] == ["0.4 ms", "810 ms", "90 s", "10 min"]


def test_no_recipe(capsys):
    assert run_command("--gpus", "8") == 2
    assert "Name the recipe" in capsys.readouterr().err


def test_own_settings_are_no_fields_of_a_recipe(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((ROOT / "recipes" / "quickstart.yaml").read_text() + "gpus: 4\n")
    assert run_command(str(recipe)) == 2
    assert "`gpus`" in capsys.readouterr().err
