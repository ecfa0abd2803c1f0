"""The library of methods in real updates."""

import pytest
import torch
from helpers import config, fixed_rollout, letter_reward, prompts
from support.resumed import GCPO, assert_same_run, make, outcome
from support.runs import assert_same, run
from trl import GRPOConfig, GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer, build_credit
from trl_credit.methods.fipo import fipo_weights
from trl_credit.trainer.exactness import check_old_policy


OFF_POLICY = {"num_iterations": 2, "per_device_train_batch_size": 4, "max_steps": 4}
DGPO = {"method": "dgpo", "temperature": 0.002}


@pytest.mark.parametrize("loss", [{"loss_type": "dapo"}, {"loss_type": "grpo", "beta": 0.1}])
def test_forking_is_trls_rule_bit_for_bit(loss, tiny_model, tmp_path):
    settings = {**OFF_POLICY, **loss}
    credit = {"method": "forking", "fraction": 0.3}
    theirs = run(GRPOTrainer, GRPOConfig, tiny_model, tmp_path / "trl", top_entropy_quantile=0.3, **settings)
    ours = run(
        CreditGRPOTrainer, CreditGRPOConfig, tiny_model, tmp_path / "us", credit=credit, trim_padding=False, **settings
    )
    for logs in (ours[0], theirs[0]):  # what the clip metrics are shares of differs
        for entry in logs:
            for name in [name for name in entry if name.startswith("clip_ratio/")]:
                del entry[name]
    assert_same(ours, theirs)


def test_fipo_acts_from_the_second_update_on_a_generation_batch(tiny_model, tmp_path):
    seen = []
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit="fipo", learning_rate=0.05, **OFF_POLICY),
        train_dataset=prompts(),
    )
    trainer.credit_observers.append(lambda batch, result: seen.append(result))
    trainer.train()
    for update, result in enumerate(seen):
        inputs = result.inputs
        even = torch.equal(result.weights, inputs.mask.float())
        assert even == (update % 2 == 0), update
        old = inputs.old_logps if inputs.old_logps is not None else inputs.policy_logps
        gap = torch.where(inputs.mask, inputs.policy_logps - old, 0.0)
        expected = fipo_weights(gap, inputs.advantages, inputs.mask)
        torch.testing.assert_close(result.row_advantages, inputs.advantages.unsqueeze(1) * expected)


def test_fipo_is_refused_where_it_has_no_effect(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="'fipo' has no effect here: every update is on-policy"):
        CreditGRPOTrainer(
            model=tiny_model,
            reward_funcs=letter_reward,
            args=config(tmp_path, credit=["gcpo", "fipo"]),
            train_dataset=prompts(),
        )


def losses(tiny_model, path, credit, **settings):
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        rollout_func=fixed_rollout,
        args=config(path, credit=credit, **settings),
        train_dataset=prompts(),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return logs, [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_a_list_of_one_trains_as_the_method_bit_for_bit(tiny_model, tmp_path):
    alone, listed = (losses(tiny_model, tmp_path / str(i), credit) for i, credit in enumerate([GCPO, [GCPO]]))
    assert [entry["loss"] for entry in alone[0]] == [entry["loss"] for entry in listed[0]]
    assert all(torch.equal(*pair) for pair in zip(alone[1], listed[1], strict=True))


def test_the_order_of_a_list_changes_no_bit(tiny_model, tmp_path):
    runs = [
        losses(tiny_model, tmp_path / str(i), credit, num_iterations=2)
        for i, credit in enumerate([[GCPO, DGPO], [DGPO, GCPO]])
    ]
    assert all(torch.equal(*pair) for pair in zip(runs[0][1], runs[1][1], strict=True))
    alone = losses(tiny_model, tmp_path / "alone", GCPO, num_iterations=2)
    assert not all(torch.equal(*pair) for pair in zip(runs[0][1], alone[1], strict=True))
    logged = runs[0][0][-1]
    assert 0 < logged["credit/gcpo/effective_fraction"] < 1
    assert logged["credit/gcpo/contrast"] > 0
    assert logged["credit/dgpo/hellinger"] > 0


@pytest.mark.parametrize(
    "credit", ["random", {"method": "shuffled", "of": GCPO}, [GCPO, "random"], ["fipo", DGPO]], ids=str
)
def test_resumed_from_any_update(credit, tiny_model, tmp_path):
    whole = make(tiny_model, tmp_path / "whole", credit=credit, max_steps=8)
    whole.train()
    for stop in (2, 5):
        resumed = make(tiny_model, tmp_path / "resumed", credit=credit, max_steps=8)
        torch.manual_seed(stop)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert_same_run(outcome(resumed), outcome(whole), f"stopped after {stop}")


@pytest.mark.parametrize("credit", ["random", {"method": "shuffled", "of": GCPO}, [GCPO, DGPO]], ids=str)
def test_skipping_and_trimming_change_only_rounding(credit, tiny_model, tmp_path):
    def parity_reward(completion_ids, **kwargs):
        return [float(sum(ids) % 5 < 2) for ids in completion_ids]

    grads = []
    for i, saves in enumerate([True, False]):
        trainer = CreditGRPOTrainer(
            model=tiny_model,
            reward_funcs=parity_reward,
            rollout_func=fixed_rollout,
            args=config(
                tmp_path / str(i), credit=credit, skip_zero_advantage=saves, trim_padding=saves, max_steps=1,
                gradient_accumulation_steps=2, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, num_generations=2,
            ),
            train_dataset=prompts(),
        )  # fmt: skip
        before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        trainer.train()
        grads.append([old - new for old, new in zip(before, trainer.model.parameters(), strict=True)])
    assert max(grad.abs().max() for grad in grads[0]) > 1e-3
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_fipo_is_refused_on_policy_with_vllm_too():
    """TRL keeps old log-probs for vLLM's correction, but they are the live policy's."""
    args = config("unused", credit="fipo")
    args.use_vllm = True
    with pytest.raises(ValueError, match="every update is on-policy"):
        check_old_policy(build_credit("fipo"), args)


def test_the_off_policy_mask_goes_by_the_sequence_advantage(tiny_model, tmp_path):
    """With token advantages of both signs, TRL would drop the negative tokens of a stale completion and train the others."""
    masks, signs = [], []

    def record(advantages, **kwargs):
        masks.append(original(advantages=advantages, **kwargs))
        signs.append(advantages)
        return masks[-1]

    original = GRPOTrainer.get_off_policy_mask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "get_off_policy_mask", staticmethod(record))
        losses(
            tiny_model,
            tmp_path,
            "otb",
            off_policy_mask_threshold=1e-3,
            num_iterations=2,
            max_steps=2,
            learning_rate=0.3,
        )
    assert all(advantages.size(1) == mask.size(1) == 1 for advantages, mask in zip(signs, masks, strict=True))
    assert any((mask == 0).any() for mask in masks)


def test_an_evaluation_batch_that_trl_does_not_keep_is_refused_before_training(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"Lower `per_device_eval_batch_size` \(16\)"):
        CreditGRPOTrainer(
            model="no/such/model",
            reward_funcs=letter_reward,
            args=config(tmp_path, credit="otb", eval_strategy="steps", per_device_eval_batch_size=16),
            train_dataset=prompts(),
            eval_dataset=prompts(4),
        )
