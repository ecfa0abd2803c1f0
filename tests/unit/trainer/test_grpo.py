"""Policy dtypes, and unsupported models."""

import pytest
from helpers import config, letter_reward, prompts
from peft import LoraConfig
from support.config import Trio
from transformers import AutoModelForCausalLM

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


@pytest.mark.parametrize(
    "credit", ["dgpo", {"method": "teacher", "model": "no/such/teacher", "coefficient": 0.2}], ids=str
)
def test_fsdp_version_1_and_a_model_that_is_loaded(credit, tiny_model, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    args = config(tmp_path, credit=credit)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="which FSDP version 1 does not show"):
        CreditGRPOTrainer(model=model, reward_funcs=letter_reward, args=args, train_dataset=prompts())


TRIO = f"{Trio.__module__}.Trio"


@pytest.mark.parametrize(
    "credit", ["certainty", ["gcpo", "certainty"], TRIO, {"method": "shuffled", "of": [TRIO, "gcpo"]}], ids=str
)
def test_too_few_prompts_to_compare_are_refused(credit, tmp_path):
    few, enough = (config(tmp_path, credit=credit, per_device_train_batch_size=n, num_generations=4) for n in (4, 8))
    more = config(tmp_path, credit=credit, per_device_train_batch_size=4, num_generations=4, steps_per_generation=2)
    data = {"model": "no/such/model", "reward_funcs": letter_reward, "train_dataset": prompts()}
    with pytest.raises(
        ValueError, match=r"compares prompts .* `generation_batch_size` \(4\) / .* \(4\) is 1\. Increase"
    ):
        CreditGRPOTrainer(args=few, **data)
    for args in (enough, more):
        with pytest.raises(OSError, match="no/such/model"):
            CreditGRPOTrainer(args=args, **data)
