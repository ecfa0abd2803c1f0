"""Groups of completions, and the credit of methods of every kind on them."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bench import Knows
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit.bench.groups import Group, blame, group_advantages, score_groups
from trl_credit.bench.run import planted_groups
from trl_credit.bench.scores import METRICS, item_scores
from trl_credit.bench.tasks import make_items, tokens_and_labels
from trl_credit.inspection.scoring import CreditScorer
from trl_credit.methods.compose import labelled
from trl_credit.records.record import CompletionCredit
from trl_credit.toy.build_model import build_tokenizer


SEEDED = settings(deadline=None, max_examples=40)


def random_groups(number: int, tokenizer, seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)
    groups = []
    for i in range(number):
        prompt = f"{10 + i}+{20 + i}="
        completions = [rng.integers(3, 60, rng.integers(2, 9)).tolist() for _ in range(4)]
        rewards = torch.tensor([0.0, 1.0, 0.0, float(rng.integers(0, 2))])
        ids = tokenizer(prompt)["input_ids"]
        groups.append(Group(prompt, ids, completions, rewards, {"answer": "30", "solution": "10+20=30;#30"}))
    return groups


def record(token_advantages, weights, advantage) -> CompletionCredit:
    length = len(token_advantages)
    return CompletionCredit(
        prompt="p",
        completion="c",
        tokens=["t"] * length,
        token_ids=np.zeros(length, int),
        mask=np.ones(length, bool),
        logps=np.zeros(length, np.float32),
        entropy=np.zeros(length, np.float32),
        weights={} if weights is None else {"m": weights},
        token_advantages={"m": token_advantages},
        advantage=advantage,
    )


@SEEDED
@given(seed=st.integers(0, 10_000), length=st.integers(2, 40))
def test_blame_of_weights_is_the_weights(seed, length):
    """To the last bit, although products of close weights with an advantage may round to the same number."""
    rng = np.random.default_rng(seed)
    weights = (1 + rng.integers(0, 4, length) * 2.0**-23).astype(np.float32)
    labels = rng.random(length) < 0.3
    labels[rng.integers(length)] = True
    advantage = -float(np.float32(rng.random() + 0.1))
    found = blame(record(np.float32(advantage) * weights, weights, advantage), "m")
    own, before = item_scores(found, labels), item_scores(weights, labels)
    assert all(own[name] == before[name] or np.isnan(before[name]) for name in METRICS)


def test_blame_of_other_kinds():
    advantages = np.array([-1.5, -0.5, 0.25], np.float32)
    assert blame(record(advantages, None, -0.5), "m").tolist() == [1.5, 0.5, -0.25]
    # A method that weighs and adds
    weights = np.array([1.0, 1.0, 1.0], np.float32)
    assert blame(record(advantages, weights, -0.5), "m").tolist() == [1.5, 0.5, -0.25]


def test_group_advantages():
    group = random_groups(1, build_tokenizer())[0]
    assert torch.equal(group.advantages, group_advantages(group.rewards))
    assert group.advantages[0] < 0 < group.advantages[1]


# Scores


@pytest.fixture(scope="module")
def tokenizer(bench_model):
    return AutoTokenizer.from_pretrained(bench_model)


def scorer_of(model: str, methods) -> CreditScorer:
    return CreditScorer(model, labelled(methods), per_device_train_batch_size=8)


def test_one_of_each_group_is_scored_as_all_are(bench_model, tokenizer):
    """The others count as siblings, in signals and in the rollout stage."""
    methods = ["uniform", "gcpo", "rlsd", "rlcsd", "otb", "random", {"method": "teacher", "model": bench_model}]
    scorer = scorer_of(bench_model, methods)
    groups = random_groups(5, tokenizer)
    everyone, first = score_groups(scorer, groups), score_groups(scorer, groups, only=2)
    assert [len(rows) for rows in everyone] == [4] * 5
    assert [len(rows) for rows in first] == [1] * 5
    for group, rows, (alone,) in zip(groups, everyone, first, strict=True):
        assert alone.token_ids.tolist() == group.completions[2]
        for label in scorer.methods:
            np.testing.assert_allclose(
                alone.token_advantages[label], rows[2].token_advantages[label], rtol=1e-4, atol=2e-5, err_msg=label
            )
        for row, advantage in zip(rows, group.advantages.tolist(), strict=True):
            assert (row.token_advantages["uniform"] == np.float32(advantage)).all()
    assert any(np.ptp(row.token_advantages["rlcsd"]) > 0.1 for rows in everyone for row in rows)
    # Without methods that look at groups, the others cost nothing
    plain = scorer_of(bench_model, ["uniform", "gcpo"])
    (alone,) = score_groups(plain, groups[:1], only=2)[0]
    np.testing.assert_allclose(alone.weights["gcpo"], everyone[0][2].weights["gcpo"], atol=1e-4)


def test_otb_of_groups_is_the_definition_s(bench_model, tokenizer):
    """From plain forwards, so that groups, rewards and their order are those of the group."""
    model = AutoModelForCausalLM.from_pretrained(bench_model, dtype=torch.float64)
    groups = random_groups(3, tokenizer, seed=4)
    found = score_groups(scorer_of(bench_model, ["otb"]), groups)
    for group, rows in zip(groups, found, strict=True):
        width = max(map(len, group.completions))
        logps, squares, mask = np.zeros((4, width)), np.zeros((4, width)), np.zeros((4, width), bool)
        for i, ids in enumerate(group.completions):
            with torch.no_grad():
                logits = model(torch.tensor([group.prompt_ids + ids])).logits[0, len(group.prompt_ids) - 1 : -1]
            own = logits.log_softmax(-1)
            logps[i, : len(ids)] = own[range(len(ids)), ids]
            squares[i, : len(ids)] = own.exp().square().sum(-1)
            mask[i, : len(ids)] = True
        expected = oracles.otb(logps, squares, group.rewards.tolist(), [0] * 4, mask)
        for row, wanted in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row.token_advantages["otb"], wanted[: len(row.token_ids)], atol=1e-5)


@pytest.mark.parametrize(("term", "auroc", "has_mass"), [(-0.3, 1.0, True), (0.3, 0.0, True), (3.0, 0.0, False)])
def test_a_planted_term_is_found(term, auroc, has_mass, bench_model):
    """A negative term on the deciding token is the best possible, its opposite the worst."""
    scorer = CreditScorer(bench_model, {"knows": Knows(term)})
    items = make_items("planted_error", 6)
    encoded = [tokens_and_labels(item, scorer.tokenizer) for item in items]
    groups = planted_groups(items, encoded, scorer, "compact")
    assert all(group.completions[0] == ids for group, (ids, _) in zip(groups, encoded, strict=True))
    for (row,), (_, labels) in zip(score_groups(scorer, groups, only=0), encoded, strict=True):
        scores = item_scores(blame(row, "knows"), labels, row.mask)
        assert scores["auroc"] == auroc
        assert np.isfinite(scores["mass"]) == has_mass
