"""Policy dtypes, and unsupported models."""

import pytest
from helpers import config, letter_reward, prompts
from peft import LoraConfig

from trl_credit import DGPOTrainer


LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")


def test_peft_with_sync_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="sync_ref_model"):
        DGPOTrainer(
            model=tiny_model,
            reward_funcs=letter_reward,
            args=config(tmp_path, sync_ref_model=True),
            train_dataset=prompts(),
            peft_config=LORA,
        )


def test_unknown_reference_fails_before_the_policy_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="`reference`: there is no folder 'no/such/reference'"):
        DGPOTrainer(
            model="no/such/model",
            reward_funcs=letter_reward,
            args=config(tmp_path, credit={"method": "dgpo", "reference": "no/such/reference"}),
            train_dataset=prompts(),
        )
