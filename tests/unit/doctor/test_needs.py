"""What recipes ask for."""

import pytest
from helpers import ROOT
from support.recipes import RECIPES

from trl_credit.doctor.needs import NAMED, Needs, needs_of


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: "/".join(path.parts[-2:]))
def test_shipped_recipes(recipe, monkeypatch, tmp_path):
    """Their own heads say with what they are launched, from any folder."""
    monkeypatch.chdir(tmp_path)
    needs = needs_of([str(recipe)])
    head = recipe.read_text().partition("\n\n")[0].partition("Launch:")[2]
    direct = head.lstrip("# \n").startswith(("trl-credit", "OMP_NUM_THREADS"))
    assert (needs.launcher is None) == (direct or not head)
    assert ("deepspeed" in needs.packages) == (needs.launcher is not None and "zero" in needs.launcher)
    assert ("vllm" in needs.packages) == ("use_vllm: true" in recipe.read_text())
    assert needs.gpus == (0 if not needs.launcher else 1 if "one_gpu" in needs.launcher else 8)
    assert any(field == "model_name_or_path" for field, _ in needs.models)


def test_a_launcher_of_another_precision():
    quickstart = str(ROOT / "recipes" / "quickstart.yaml")  # `bf16: false`
    clash = needs_of([quickstart], str(ROOT / "recipes" / "accelerate" / "zero3.yaml")).clash
    assert clash.startswith("`bf16` is off, and ")
    assert clash.endswith("zero3.yaml starts DeepSpeed with `mixed_precision: bf16`")
    for name in ("ddp", "ddp_cpu", "fsdp2"):
        assert needs_of([quickstart], str(ROOT / "recipes" / "accelerate" / f"{name}.yaml")).clash is None
    for words in (["--bf16", "true"], ["--fp16", "true"], ["--bf16_full_eval", "true"]):
        assert needs_of([quickstart, *words], str(ROOT / "recipes" / "accelerate" / "zero3.yaml")).clash is None


@pytest.mark.parametrize("switch", ["1", "true", "yes", "'on'"])
def test_switches_as_yaml_and_command_lines_have_them(tmp_path, switch):
    assert "vllm" in needs_of([recipe(tmp_path, f"use_vllm: {switch}\n")]).packages
    assert needs_of([recipe(tmp_path, "bf16: 0\n")]).bf16 is False


def test_a_file_for_deepspeed(tmp_path):
    assert ("deepspeed", "ds.json") in needs_of([recipe(tmp_path, "deepspeed: ds.json\n")]).code


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model_name_or_path: some/model\ndataset_name: data.jsonl\n{text}")
    return str(path)


def test_packages(tmp_path):
    needs = needs_of([recipe(
        tmp_path,
        "use_vllm: true\nload_in_4bit: true\nattn_implementation: flash_attention_2\nreport_to: [wandb, trackio]\n"
        "optim: adamw_8bit\neval_dataset_name: reasoning_gym:chain_sum\nuse_liger_kernel: false\n",
    )])  # fmt: skip
    assert set(needs.packages) == {"vllm", "bitsandbytes", "flash-attn", "wandb", "trackio", "reasoning-gym"}
    assert needs.gpus == 1
    assert needs.bf16
    assert needs.server is None
    assert needs.data == (("dataset_name", "data.jsonl"),)


def test_attention_of_the_hub(tmp_path):
    needs = needs_of([recipe(tmp_path, "attn_implementation: kernels-community/flash-attn3\n")])
    assert needs.packages == {"kernels": "`attn_implementation` is 'kernels-community/flash-attn3'"}


def test_the_command_line_comes_last(tmp_path):
    path = recipe(tmp_path, "use_vllm: true\n")
    for words in (["--use_vllm", "false"], ["--use_vllm=false"], ["--no_use_vllm"], ["--no_use_vllm", "--seed", "1"]):
        assert "vllm" not in needs_of([path, *words]).packages
    path = recipe(tmp_path, "use_vllm: false\n")
    for words in (["--use_vllm"], ["--use_vllm", "--seed", "1"], ["--use_vllm", "true"]):
        assert "vllm" in needs_of([path, *words]).packages


@pytest.mark.parametrize(
    ("text", "gpus", "bf16"),
    [("", 1, True), ("bf16: false\n", 0, False), ("use_cpu: true\n", 0, False), ("fp16: true\n", 0, False),
     ("bf16: false\nuse_vllm: true\n", 1, False), ("use_cpu: true\nuse_vllm: true\n", 0, False)],
)  # fmt: skip
def test_gpus(tmp_path, text, gpus, bf16):
    needs = needs_of([recipe(tmp_path, text)])
    assert (needs.gpus, needs.bf16) == (gpus, bf16)
    assert bool(needs.gpus_why) == bool(gpus)


def test_server(tmp_path):
    text = "use_vllm: true\nvllm_mode: server\n"
    assert needs_of([recipe(tmp_path, text)]).server == "http://0.0.0.0:8000"
    assert (
        needs_of([recipe(tmp_path, text), "--vllm_server_host", "head", "--vllm_server_port", "81"]).server
        == "http://head:81"
    )
    assert needs_of([recipe(tmp_path, text + "vllm_server_base_url: http://a:9/\n")]).server == "http://a:9"


def test_models_files_and_code_of_a_recipe(tmp_path):
    needs = needs_of([recipe(
        tmp_path,
        "credit: [{method: dgpo, reference: org/start}, {method: teacher, model: org/teacher}, gcpo]\n"
        "reward_model_name_or_path: org/judge\nreward_funcs: [accuracy, mine.py:reward, {name: more.py:other, weight: 2}]\n"
        "eval: {tasks: [aime24, own=problems.jsonl]}\noutput_dir: out\n",
    )])  # fmt: skip
    assert dict(needs.models) == {
        "model_name_or_path": "some/model", "reward_model_name_or_path": "org/judge",
        "credit: reference": "org/start", "credit: model": "org/teacher",
    }  # fmt: skip
    assert needs.data == (("dataset_name", "data.jsonl"), ("eval: tasks", "problems.jsonl"))
    assert needs.code == (("reward_funcs", "mine.py"), ("reward_funcs", "more.py"))
    assert needs.output_dir == "out"


def test_launchers(tmp_path):
    path = recipe(tmp_path, "bf16: false\n")
    assert needs_of([path], "zero3").packages == {"deepspeed": "zero3 starts DeepSpeed"}  # of TRL
    needs = needs_of([path], str(ROOT / "recipes" / "accelerate" / "zero3_multinode.yaml"))
    assert needs.gpus == 8  # of 32 on four machines
    assert needs.bf16
    assert needs.compiles is None
    own = tmp_path / "offload.yaml"
    own.write_text("distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {offload_optimizer_device: cpu}\n")
    needs = needs_of([path], str(own))
    assert "optimizer" in needs.compiles
    assert needs.gpus == 2
    assert needs_of([path], str(own), 8).gpus == 8
    assert needs_of([path], None, 4).gpus == 4
    assert needs_of([path, "--use_cpu", "true"], None, 4).gpus == 0
    own.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\n")
    assert needs_of([path], str(own)).gpus == 0
    with pytest.raises(ValueError, match=r"no configuration 'zero33'. .*zero3"):
        needs_of([path], "zero33")


@pytest.mark.parametrize(
    ("text", "message"),
    [("use_vlm: true\n", "use_vllm"), ("credit: gcppo\n", "gcpo"), ("- 1\n", "YAML"), ("eval: [1]\n", "eval")],
)
def test_errors_are_those_of_train(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        needs_of([recipe(tmp_path, text)])


def test_sums():
    total = Needs("a", {"vllm": "first"}, 1, "one", models=(("m", "x"),)) + Needs(
        "b", {"vllm": "second"}, 4, "four", True
    )
    assert (total.of, total.packages, total.gpus, total.gpus_why, total.bf16) == (
        "a and b", {"vllm": "first"}, 4, "four", True,
    )  # fmt: skip
    assert total.models == (("m", "x"),)
    assert (NAMED["gpu"] + NAMED["bf16"]).named == ("bf16",)
    assert all(named.of == f"`--needs {name}`" for name, named in NAMED.items())
