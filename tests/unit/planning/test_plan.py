"""Plans of recipes."""

import json

import pytest
from helpers import ROOT
from support.planning import CONFIGS, plan_of, read_recipe, words_for
from support.recipes import settings_of

from trl_credit.planning import cli
from trl_credit.planning.cards import CARDS
from trl_credit.planning.held import held
from trl_credit.planning.layouts import LAYOUTS
from trl_credit.planning.from_recipe import read_run


RECIPES = sorted(
    str(path.relative_to(ROOT / "recipes"))
    for path in (ROOT / "recipes").rglob("*.yaml")
    if "accelerate" not in path.parts
)
DGPO = "qwen2.5-1.5b/dgpo.yaml"


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
    json.dumps(plan, allow_nan=False)


def test_layouts_grow_with_the_model():
    names = [plan_of(f"qwen2.5-{size}/gcpo.yaml", "--gpus", "32")["layout"] for size in ("1.5b", "7b", "32b")]
    assert names == ["zero2", "zero3", "zero3"]
    assert plan_of("qwen2.5-1.5b/gcpo_lora.yaml", "--gpus", "1")["layout"] == "one"
    assert plan_of("qwen2.5-1.5b/gcpo_lora.yaml", "--gpus", "8")["layout"] == "ddp"


def test_forced_layout():
    plan = plan_of(DGPO, "--layout", "ddp")
    assert plan["layout"] == "ddp"
    assert plan["launch"].endswith("--dtype float32")  # nothing else keeps float32 masters
    assert not plan["fits"]
    with pytest.raises(ValueError, match="`layout`: 'one' does not go with `gpus` 8"):
        plan_of(DGPO, "--layout", "one")


def test_several_machines():
    plan = plan_of("qwen2.5-32b/gcpo.yaml", "--gpus", "32")
    assert plan["machines"] == 4
    assert "zero3_multinode.yaml --num_processes 32 --num_machines 4" in plan["launch"]
    with pytest.raises(ValueError, match=r"do not fill machines of 8.*use 8"):
        plan_of("qwen2.5-32b/gcpo.yaml", "--gpus", "12")


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
    colocate = plan_of(DGPO)["memory"]["vLLM"]
    assert colocate == pytest.approx(0.3 * 80e9)
    assert "vLLM" not in plan_of(DGPO, "--vllm_mode", "server")["memory"]
    sleeping = plan_of(DGPO, "--vllm_enable_sleep_mode", "true")["memory"]
    assert "vLLM" not in sleeping
    small = plan_of("qwen2.5-7b/gcpo.yaml", "--vllm_gpu_memory_utilization", "0.1")
    assert (small["fits"], small["engine_fits"]) == (False, False)
    with pytest.raises(ValueError, match=r"`engine_gpus` \(4\) has no effect"):
        plan_of(DGPO, "--engine_gpus", "4")


def test_remedies():
    """Each by itself; more GPUs are enough as soon as the plan for them says so."""
    plan = plan_of(DGPO, "--gradient_checkpointing", "false")
    assert not plan["fits"]
    assert plan["remedies"][0] == "--gradient_checkpointing true (zero2)"
    assert plan["remedies"][1].startswith("--per_device_train_batch_size")
    plan = plan_of("qwen2.5-32b/grpo.yaml", "--gpus", "8")
    (more,) = plan["remedies"]
    number = int(more.split()[1])
    after, before = (plan_of("qwen2.5-32b/grpo.yaml", "--gpus", str(each)) for each in (number, number // 2))
    assert after["fits"]
    assert not after["close"]
    assert not before["fits"] or before["close"]
    assert more.endswith(f"({after['layout']})")


def test_remedies_together():
    """Where no change alone is enough."""
    (remedy,) = plan_of("qwen2.5-7b/dgpo.yaml", "--gpu", "a100-40gb")["remedies"]
    rows = "--per_device_train_batch_size 1 with 4 times the accumulation and steps per generation"
    assert remedy == f"{rows}, --vllm_mode server with GPUs of its own (zero3)"
    assert "--gradient_checkpointing" not in remedy  # it is on


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
        (["--gpus", "0"], "`gpus` must be at least 1, got 0"),
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


def test_no_recipe(capsys):
    assert run_command("--gpus", "8") == 2
    assert "Name the recipe" in capsys.readouterr().err


def test_own_settings_are_no_fields_of_a_recipe(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((ROOT / "recipes" / "quickstart.yaml").read_text() + "gpus: 4\n")
    assert run_command(str(recipe)) == 2
    assert "`gpus`" in capsys.readouterr().err
