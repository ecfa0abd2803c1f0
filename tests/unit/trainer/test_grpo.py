"""Policy dtypes, and unsupported models."""

import pytest
from helpers import config, letter_reward, prompts
from peft import LoraConfig

from trl_credit import CreditGRPOTrainer, DGPOTrainer


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


@pytest.mark.parametrize("credit", ["otb", "dgpo", {"method": "gcpo", "divergence": "full"}, "gcpo", "uniform"])
@pytest.mark.parametrize("version", ["1", "2"])
def test_fsdp_version_1_shows_no_head(credit, version, tmp_path, monkeypatch):
    args = config(tmp_path, credit=credit)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    refused = version == "1" and credit not in ("gcpo", "uniform")
    with pytest.raises((ValueError, OSError)) as error:  # there is no such model
        CreditGRPOTrainer(model="no/such/model", reward_funcs=letter_reward, args=args, train_dataset=prompts())
    assert ("which FSDP version 1 does not show. Set `fsdp_version: 2`" in str(error.value)) == refused
