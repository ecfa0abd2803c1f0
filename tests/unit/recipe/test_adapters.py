"""Adapters and their base models."""

import pytest
from peft import LoraConfig

from trl_credit.model_files import base_of_adapter, embedded_model_path


@pytest.mark.parametrize("base", ["trl_credit:quickstart", "/elsewhere/site-packages/trl_credit/quickstart/model"])
def test_adapters_of_the_embedded_model(base, tmp_path):
    LoraConfig(base_model_name_or_path=base, task_type="CAUSAL_LM").save_pretrained(tmp_path)
    assert base_of_adapter(str(tmp_path)) == embedded_model_path()
