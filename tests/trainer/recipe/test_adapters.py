"""Training that starts from an adapter."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from support.train import line

from trl_credit import train
from trl_credit.model_files import LocalModel


ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]

ROWS = [{"problem": f"{i}+{i}?", "answer": str(2 * i), "extra": i} for i in range(12)]


# Adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model):
    """The output folder of a LoRA run."""
    folder = tmp_path_factory.mktemp("adapter")
    lora = ["--use_peft", "true", "--lora_r", "4", "--lora_alpha", "8", "--lora_target_modules", "q_proj", "v_proj"]
    train.main(line(folder, tiny_model, *lora, "--max_steps", "1", "--learning_rate", "1e-2"))
    return folder / "out"


def test_an_adapter_is_trained_on(adapter, tmp_path):
    before = load_file(adapter / "adapter_model.safetensors")
    trainer = train.main(
        line(tmp_path, str(adapter), "--credit", "dgpo", "--max_steps", "1", "--learning_rate", "1e-2", "--beta", "0.1")
    )
    assert trainer.model.peft_config["default"].r == 4
    trainable = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(".default." in name for name in trainable)
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(after) == set(before)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    # The reference is the adapter as this run found it
    reference = get_peft_model_state_dict(trainer.model, adapter_name="ref")
    assert all(torch.equal(reference[name].cpu(), before[name]) for name in before)
    # And its output is one that others can go on with
    found = LocalModel.find(str(tmp_path / "out"))
    assert found.adapter == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["--use_peft", "true", "--lora_r", "8"],
            "keeps its own settings, but `lora_r` is 8, the adapter's 4;",
        ),
        (["--credit", '{"method": "dgpo", "reference": "./nope"}'], "`reference`: there is no folder './nope'"),
    ],
)
def test_adapters_that_do_not_fit(extra, message, adapter, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(line(tmp_path, str(adapter), *extra))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("./gone", "names the base model './gone', which does not exist (looked from"),
        (None, "does not name its base model"),
        ("trl_credit:quick", "names the base model 'trl_credit:quick', which does not exist"),
    ],
)
def test_adapters_without_their_base_model(base, message, adapter, tmp_path, capsys):
    copied = tmp_path / "copied"
    shutil.copytree(adapter, copied)
    settings = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
    with pytest.raises(SystemExit):
        train.main(line(tmp_path, str(copied)))
    assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(ValueError, match=r"^`model`: the adapter"):
        LocalModel.find(str(copied))
