"""Adapters and their base models."""

import pytest
from peft import LoraConfig
from support.train import line

from trl_credit.model_files import base_of_adapter, embedded_model_path
from trl_credit.recipe.recipe import Recipe


@pytest.mark.parametrize("base", ["trl_credit:quickstart", "/elsewhere/site-packages/trl_credit/quickstart/model"])
def test_adapters_of_the_embedded_model(base, tmp_path):
    LoraConfig(base_model_name_or_path=base, task_type="CAUSAL_LM").save_pretrained(tmp_path)
    assert base_of_adapter(str(tmp_path)) == embedded_model_path()


def test_an_earlier_adapter_is_not_left_beside_a_whole_model(tmp_path, tiny_model):
    """Loaders would take the adapter."""
    LoraConfig(base_model_name_or_path=tiny_model, task_type="CAUSAL_LM").save_pretrained(tmp_path / "out")
    words = line(tmp_path, tiny_model)
    with pytest.raises(
        ValueError, match=r"`output_dir`: .* has the adapter of an earlier run \(adapter_config\.json\)"
    ):
        Recipe.read(words).trainer_arguments()
    assert Recipe.read([*words, "--use_peft", "true"]).trainer_arguments()["peft_config"] is not None
