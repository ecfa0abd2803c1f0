"""Lists of methods."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support.inputs import credit, make_inputs

from trl_credit import CreditMethod, Paper, build_credit
from trl_credit.methods.compose import AllSignals
from trl_credit.methods.metrics import credit_metrics
from trl_credit.methods.mix import Mix
from trl_credit.methods.ops import mean_one
from trl_credit.methods.schedule import check_schedule, ever_nonzero, value_at


GCPO, DGPO = {"method": "gcpo"}, {"method": "dgpo", "temperature": 0.01}
NO_PAPER = Paper(title="", id="", citation="")


@dataclass(frozen=True)
class Term(CreditMethod):
    """Adds `size` times the entropy."""

    size: float = 0.5
    name = "term"
    paper = NO_PAPER
    reweights = False

    def term(self, inputs):
        return torch.where(inputs.mask, self.size * inputs.policy_entropy, 0.0)


@dataclass(frozen=True)
class Factor(CreditMethod):
    """Triples every advantage."""

    name = "factor"
    paper = NO_PAPER
    mean_one = False

    def weights(self, inputs):
        return 3.0 * inputs.mask


@dataclass(frozen=True)
class Own(CreditMethod):
    """Advantages from the log-probs."""

    name = "own"
    paper = NO_PAPER
    reweights = False
    own_advantages = True

    def token_advantages(self, advantages, weights, inputs):
        return torch.where(inputs.mask, inputs.policy_logps, 0.0)

    def rows_with_credit(self, rollout):
        return rollout.groups_with_signal


@dataclass(frozen=True)
class Signed(CreditMethod):
    """Goes by the sign."""

    name = "signed"
    paper = NO_PAPER
    reads_sign = True

    def weights(self, inputs):
        return inputs.mask.float()


def make(*parts, **settings) -> Mix:
    return Mix([part if isinstance(part, dict) else part.to_dict() for part in parts], **settings)


def test_weights_multiply_and_have_mean_one_again():
    mix = make(GCPO, DGPO)
    inputs = make_inputs(mix, 0, 5, 12)
    product = build_credit(GCPO).weights(inputs) * build_credit(DGPO).weights(inputs)
    expected = torch.zeros(5, 12, dtype=torch.float64)
    for row in range(5):
        on = inputs.mask[row]
        if on.any():
            expected[row, on] = product[row, on].double() * on.sum() / product[row, on].double().sum()
    torch.testing.assert_close(mix.weights(inputs).double(), expected, rtol=1e-6, atol=1e-7)


def test_a_factor_is_not_scaled_away():
    mix = make(GCPO, Factor())
    inputs = make_inputs(mix, 0, 5, 12)
    assert not mix.mean_one
    torch.testing.assert_close(mix.weights(inputs), 3 * build_credit(GCPO).weights(inputs))


def test_terms_alone_may_leave_the_advantage_out():
    mix = make(Term(0.5), advantage=0.0)
    inputs = make_inputs(mix, 1, 5, 12)
    expected = torch.where(inputs.mask, 0.5 * inputs.policy_entropy, 0.0)
    torch.testing.assert_close(credit(mix, inputs)[1], expected)
    make(GCPO, Term(0.5), advantage={"from": 0.0, "to": 1.0, "updates": 3})


def test_the_formula():
    """guard(l A prod w + sum a)."""
    mix = make(GCPO, Term(0.5), Term(-2.0), advantage=0.25)
    inputs = make_inputs(mix, 1, 5, 12)
    a = inputs.advantages.double().unsqueeze(1)
    expected = 0.25 * a * build_credit(GCPO).weights(inputs).double() - 1.5 * inputs.policy_entropy.double()
    expected = torch.where(inputs.mask, expected, 0.0)
    torch.testing.assert_close(credit(mix, inputs)[1].double(), expected, rtol=1e-5, atol=1e-6)
    guarded = credit(make(GCPO, Term(0.5), Term(-2.0), advantage=0.25, guard=True), inputs)[1].double()
    flipped = (expected * a < 0) & inputs.mask
    assert flipped.any()
    assert not flipped.all()
    torch.testing.assert_close(guarded, torch.where(flipped, 0.0, expected), rtol=1e-5, atol=1e-6)


def test_own_advantages_take_the_place_of_the_sequences():
    mix = make(Own(), GCPO, Term())
    inputs = make_inputs(mix, 1, 5, 12)
    expected = inputs.policy_logps * build_credit(GCPO).weights(inputs) + 0.5 * inputs.policy_entropy
    torch.testing.assert_close(credit(mix, inputs)[1], torch.where(inputs.mask, expected, 0.0))


@dataclass(frozen=True)
class Plain(Own):
    """Has the sequence advantages, as `vine` in evaluation."""

    name = "plain"

    def token_advantages(self, advantages, weights, inputs):
        return advantages


@pytest.mark.parametrize("size", [(5, 12), (5, 5)])
def test_own_advantages_may_be_one_for_each_completion(size):
    mix = make(Plain(), GCPO, Term())
    inputs = make_inputs(mix, 1, *size)
    weights = build_credit(GCPO).weights(inputs)
    expected = inputs.advantages.unsqueeze(1) * weights + 0.5 * inputs.policy_entropy
    torch.testing.assert_close(credit(mix, inputs)[1], torch.where(inputs.mask, expected, 0.0))
    assert credit_metrics(mix, inputs, mix.weights(inputs))["credit/plain/advantage_change"] == 0


def test_the_order_of_the_list_changes_no_bit():
    parts = [GCPO, DGPO, Term(0.3).to_dict(), Term(0.7).to_dict(), Factor().to_dict()]
    inputs = make_inputs(make(*parts), 2, 5, 12)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        other = make(*(parts[i] for i in order))
        assert torch.equal(credit(other, inputs)[1], credit(make(*parts), inputs)[1])


@pytest.mark.parametrize("part", ["gcpo", DGPO, "uniform", Term().to_dict()])
def test_a_list_of_one_is_the_method(part):
    assert build_credit([part]) == build_credit(part)


def test_a_list_in_every_form():
    mix = build_credit(["gcpo", DGPO])
    assert mix == build_credit('["gcpo", {"method": "dgpo", "temperature": 0.01}]') == build_credit(mix.to_dict())
    assert mix == build_credit({"method": "mix", "parts": ["gcpo", DGPO]})
    assert mix == build_credit("[gcpo, {method: dgpo, temperature: 1e-2}]")
    assert build_credit("{method: gcpo, negative_prompt: '!{prompt}'}").negative_prompt == "!{prompt}"


def test_equal_signals_are_computed_once():
    sharp = {"method": "gcpo", "top_fraction": 0.2}
    assert len(make(GCPO, sharp).signals()) == 1


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ([], {}, "`credit` is an empty list of methods"),
        (["gcpo", {"method": "dgpo", "temperatur": 1}], {}, "part 2 of the list: .* Did you mean 'temperature'"),
        (["teacher"], {"guard": True}, "part 1 of the list: .* needs a value for `model`"),
        (["gcpo", ["dgpo", "otb"]], {}, "write one list"),
        (["uniform", "gcpo"], {}, "'uniform' changes nothing in the list"),
        (["gcpo", "gcpo"], {}, "'gcpo' is listed twice"),
        (["pcpo", "gcpo"], {}, "'pcpo' cannot be part of a list: its weights enter through the loss's ratio"),
        ([{"method": "mix", "parts": ["gcpo", DGPO]}, DGPO], {}, "write one list"),
        ([Own(), {**Own().to_dict()}], {}, "each replace the sequence advantage"),
        ([Own(), Signed()], {}, "'signed' goes by the sign of the sequence advantage"),
        (["gcpo", DGPO], {"advantage": 0.5}, "none of gcpo, dgpo adds one"),
        (["gcpo", DGPO], {"guard": True}, "`guard` has no effect"),
        (
            [{"method": "gcpo"}, Term()],
            {"advantage": 0.0},
            "nothing is left of the advantage for gcpo to .* Leave it out",
        ),
        ([GCPO, DGPO, Term()], {"advantage": [[0, 0.0], [9, 0.0]]}, "for gcpo, dgpo to credit, .* Leave them out"),
        ([Own(), Term()], {"advantage": {"from": 0, "to": 0, "updates": 3}}, "for own to credit"),
        ([Own(), Term()], {"guard": True}, "which 'own' replaces"),
        (["gcpo", "dgop"], {}, "dgpo"),
        (["gcpo", Term()], {"advantage": {"from": 0.0, "too": 1.0, "updates": 3}}, "'too'"),
    ],
)
def test_what_makes_no_sense_is_refused(parts, settings, message):
    with pytest.raises(ValueError, match=message):
        make(*(part if isinstance(part, (str, dict)) else part.to_dict() for part in parts), **settings) if not any(
            isinstance(part, str) for part in parts
        ) else Mix(list(parts), **settings)


def test_what_the_mix_is():
    weighted, added, own = make(GCPO, DGPO), make(GCPO, Term()), make(GCPO, Own())
    assert (weighted.reweights, weighted.mean_one, weighted.has_term, weighted.own_advantages) == (
        True,
        True,
        False,
        False,
    )
    assert [mix.credits_zero_advantage for mix in (weighted, added, own)] == [False, True, False]
    assert own.own_advantages
    assert own.credits_tokens


def test_each_part_has_its_metrics():
    mix = make(GCPO, Term(), DGPO)
    inputs = make_inputs(mix, 3, 5, 12)
    found = credit_metrics(mix, inputs, mix.weights(inputs))
    alone = credit_metrics(build_credit(GCPO), inputs, build_credit(GCPO).weights(inputs))
    assert found["credit/gcpo/contrast"] == pytest.approx(alone["credit/contrast"])
    assert found["credit/term/advantage_change"] == pytest.approx(
        0.5 * inputs.policy_entropy[inputs.mask].double().mean().item(), rel=1e-6
    )
    assert 0 < found["credit/dgpo/effective_fraction"] < 1
    assert set(mix.components()) == {"gcpo/", "term/", "dgpo/"}


@dataclass(frozen=True)
class Counting(CreditMethod):
    """Counts how often its weights or its term are computed."""

    kind: str = "weights"
    name = "counting"
    paper = NO_PAPER
    seen = []  # of all instances

    @property
    def reweights(self):
        return self.kind == "weights"

    @property
    def has_term(self):
        return self.kind == "term"

    def weights(self, inputs):
        self.seen.append(self.kind)
        return inputs.mask.float() if self.reweights else None

    def term(self, inputs):
        self.seen.append(self.kind)
        return 0.5 * inputs.mask


def test_what_a_part_computes_for_the_advantages_is_there_for_the_metrics():
    mix = make(GCPO, Counting("weights"), Counting("term"))
    inputs = make_inputs(mix, 3, 5, 12)
    Counting.seen.clear()
    weights, _ = credit(mix, inputs)
    found = credit_metrics(mix, inputs, weights)
    assert sorted(Counting.seen) == ["term", "weights"]
    again = inputs.map(torch.clone)
    assert credit_metrics(mix, again, mix.weights(again)) == found
    assert len(Counting.seen) == 4
    # Another list's part at the same place is another
    inputs = make_inputs(make(GCPO, DGPO), 3, 5, 12)
    for first in (GCPO, DGPO):
        assert torch.equal(make(first, Term()).weights(inputs), build_credit(first).weights(inputs))


def with_unread(mix, unread=(0, 2)):
    """Inputs of which GCPO's signal was computed for completions with an advantage only, and the same where it is known
    for all."""
    whole = make_inputs(mix, 3, 6, 12)
    advantages = whole.advantages.clone()
    advantages[list(unread)] = 0
    whole = replace(whole, mask=whole.mask | torch.tensor([row in (0, 1) for row in range(6)]).unsqueeze(1))
    whole = replace(whole, advantages=advantages)
    (signal,) = build_credit(GCPO).signals()
    rows = advantages != 0
    partial = {signal: whole.signals[signal] * rows.unsqueeze(1)}
    return replace(whole, signals={**whole.signals, **partial}, computed={signal: rows}), whole, rows


def test_weights_do_not_matter_where_their_signals_were_not_computed():
    """There is no advantage to weight; the others' credit and every metric is as without these completions."""
    mix = make(GCPO, Factor(), Term())
    inputs, whole, rows = with_unread(mix)
    weights, found = credit(mix, inputs)
    expected_weights, expected = credit(mix, whole)
    torch.testing.assert_close(found, expected)
    assert torch.equal(weights[rows], expected_weights[rows])
    assert torch.equal(weights[~rows], 3.0 * inputs.mask[~rows])
    logged = credit_metrics(mix, inputs, weights)
    read = whole.map(lambda tensor: tensor[rows])
    alone = credit_metrics(mix, read, mix.weights(read))
    own = [name for name in logged if name.startswith(("credit/gcpo/", "credit/weight", "credit/effective"))]
    assert {"credit/gcpo/contrast", "credit/gcpo/effective_fraction", "credit/weight_mean"} <= set(own)
    for name in own:
        assert logged[name] == pytest.approx(alone[name], rel=1e-6), name
    all_rows = credit_metrics(mix, whole, expected_weights)
    for name in set(logged) - set(own):
        assert logged[name] == pytest.approx(all_rows[name], rel=1e-6), name
    garbage = torch.where(rows.unsqueeze(1), *[inputs.signals[s] for s in inputs.computed], torch.nan)
    broken = replace(inputs, signals={**inputs.signals, **dict.fromkeys(inputs.computed, garbage)})
    for a, b in zip(credit(mix, broken), (weights, found), strict=True):
        assert torch.equal(a, b)


@dataclass(frozen=True)
class EveryRow(Own):
    """Names no completions."""

    name = "every_row"
    rows_with_credit = CreditMethod.rows_with_credit


def test_signals_of_completions_without_an_advantage():
    gcpo, dgpo = build_credit(GCPO), build_credit(DGPO)
    teacher = {"method": "teacher", "model": "m"}
    vppo = {"method": "vppo"}
    assert make(GCPO, DGPO).signals_without_advantage() == gcpo.signals_without_advantage() == ()
    assert make(GCPO, teacher).signals_without_advantage() == build_credit(teacher).signals()
    assert make(GCPO, vppo).signals_without_advantage() == build_credit(vppo).signals()
    assert make(Own(), GCPO, Term()).signals_without_advantage() == ()
    assert make(EveryRow(), GCPO).signals_without_advantage() == gcpo.signals()  # which weights advantages of its own
    assert AllSignals([GCPO, DGPO]).signals_without_advantage() == (*gcpo.signals(), *dgpo.signals())


class Numbered(Term):
    name = "term_2"


class Spaced(Term):
    name = "a term=1"


def test_metrics_of_a_method_listed_twice_have_clean_names():
    mix = make(GCPO, Term(), Term(size=2.0), Numbered(size=3.0), GCPO | {"top_fraction": 0.2}, Spaced(size=4.0))
    names = ["gcpo", "term", "term_2", "term_2_2", "gcpo_2", "a_term_1"]
    assert mix.metric_names == names
    assert list(mix.components()) == [f"{name}/" for name in names]
    assert list(mix.components().values()) == list(mix.labels.values())
    inputs = make_inputs(mix, 3, 5, 12)
    logged = mix.metrics(inputs)
    assert all(re.fullmatch(r"\w+/\w+", name) for name in logged)
    sizes = [1, 4, 6, 8]  # relative to the first's
    means = [logged[f"{name}/advantage_change"].sum() for name in ("term", "term_2", "term_2_2", "a_term_1")]
    assert [float(mean / means[0]) for mean in means] == pytest.approx(sizes)
    assert not torch.equal(logged["gcpo/effective_fraction"], logged["gcpo_2/effective_fraction"])
    # What people read keeps the parameters
    assert "gcpo top_fraction=0.2" in mix.labels


def test_schedules():
    ramp = {"from": 0.5, "to": 0.0, "updates": 60, "start": 2}
    assert [value_at(ramp, step) for step in (0, 2, 32, 62, 100)] == [0.5, 0.5, 0.25, 0.0, 0.0]
    assert value_at(0.3, 10) == 0.3
    mix = make(GCPO, Term(), advantage={"from": 0.0, "to": 1.0, "updates": 14})
    inputs = make_inputs(mix, 1, 5, 12)  # after 7 updates
    half = make(GCPO, Term(), advantage=0.5)
    assert torch.equal(credit(mix, inputs)[1], credit(half, inputs)[1])
    for wrong, message in [
        ({"from": 1.0}, "lacks `to`, `updates`"),
        ({**ramp, "updates": 0}, "`updates` must be a whole number of at least 1"),
        ({**ramp, "to": float("nan")}, "`to` must be a finite number"),
        (float("inf"), "must be finite"),
        ({**ramp, "start": True}, "`start` must be a whole number"),
        ([], r"`coefficient` must have at least two points, got \[\]\. Write points"),
        ([[0, 1.0]], "at least two points"),
        ([[0, 1.0], 3], r"point 2 must be \[update, value\], got 3"),
        ([[0, 1.0], [4, 1.0, 2]], r"point 2 must be \[update, value\]"),
        ([[0, 1.0], [0, 2.0]], r"point 2: .* above that of the point before \(0\), got 0"),
        ([[-1, 1.0], [3, 2.0]], "point 1: the update must be a whole number of at least 0, got -1"),
        ([[0, 1.0], [2.5, 2.0]], "point 2: .*got 2.5"),
        ([[0, "1e-3"], [2, 2.0]], "point 1: the value must be a finite number, got '1e-3'"),
        ([[0, 1.0], [2, math.inf]], "point 2: the value must be a finite number, got inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_schedule(wrong, "teacher", "coefficient")


def test_schedules_are_logged():
    ramp = {"from": 0.0, "to": 1.0, "updates": 14}
    teacher, rlsd = {"method": "teacher", "model": "m"}, {"method": "rlsd"}
    mix = make(
        teacher | {"coefficient": ramp}, rlsd | {"strength": [[0, 1.0], [14, 0.0]]}, advantage=[[0, 2.0], [7, 0.25]]
    )
    inputs = make_inputs(mix, 1, 5, 12)  # after 7 updates
    found = credit_metrics(mix, inputs, mix.weights(inputs))
    assert found["credit/teacher/coefficient"] == found["credit/rlsd/strength"] == 0.5
    assert found["credit/advantage"] == 0.25
    alone = build_credit(teacher | {"coefficient": ramp})
    assert credit_metrics(alone, make_inputs(alone, 1, 5, 12), None)["credit/coefficient"] == 0.5
    plain = make(teacher | {"coefficient": 0.5}, rlsd, advantage=0.5)
    logged = plain.metrics(make_inputs(plain, 1, 5, 12))
    assert not {"advantage", "teacher/coefficient", "rlsd/strength"} & set(logged)


@pytest.mark.parametrize("parts", [(GCPO, Term(-2.0)), (Term(-2.0), Term(0.5))])
def test_what_the_guard_changed_is_logged(parts):
    unguarded, mix = make(*parts), make(*parts, guard=True)
    inputs = make_inputs(mix, 1, 5, 12)
    before, after = (credit(one, inputs)[1] for one in (unguarded, mix))
    changed = (before != after)[inputs.mask].double().mean().item()
    assert 0 < changed < 1
    assert credit_metrics(mix, inputs, mix.weights(inputs))["credit/guarded_tokens"] == pytest.approx(changed)
    assert "guarded_tokens" not in unguarded.metrics(inputs)
    assert "guarded_tokens" not in mix.metrics(dataclasses.replace(inputs, advantages=None))


def test_a_schedule_of_points_warms_up_and_decays():
    points = [[10, 0.0], [20, 1.0], [60, 0.5]]
    check_schedule(points, "teacher", "coefficient")
    expected = {0: 0.0, 10: 0.0, 15: 0.5, 20: 1.0, 30: 0.875, 60: 0.5, 1000: 0.5}
    assert {step: value_at(points, step) for step in expected} == expected
    assert ever_nonzero(points)
    assert not ever_nonzero([[0, 0.0], [9, 0]])
    line = {"from": 0.3, "to": 0.1, "updates": 7, "start": 3}
    for step in range(20):
        assert value_at(line, step) == value_at([[3, 0.3], [10, 0.1]], step)
        assert value_at(points, step) == pytest.approx(np.interp(step, *zip(*points, strict=True)))

    # Through every parameter that takes one
    teacher = {"method": "teacher", "model": "m", "coefficient": points}
    mix = build_credit({"method": "mix", "parts": [teacher, "gcpo"], "advantage": [[0, 0.0], [14, 1.0]]})
    assert build_credit(json.loads(json.dumps(mix.to_dict()))) == mix
    assert build_credit({"method": "rlsd", "strength": [[0, 0.0], [2, 1.0], [9, 0.0]]}).strength[1] == [2, 1.0]
    for method, message in [
        ({"method": "rlsd", "strength": [[0, 0.0], [2, 1.5], [9, 0.0]]}, "`strength` must be between 0 and 1"),
        (teacher | {"coefficient": [[0, 0.0], [5, 0.0]]}, "`coefficient` must be other than 0"),
        ({"method": "mix", "parts": [teacher], "advantage": [[0]]}, "'mix': `advantage` must have at least two points"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_credit(method)


def test_a_product_that_is_zero_everywhere_is_uniform():
    weights = torch.zeros(1, 4)
    assert torch.equal(mean_one(weights, torch.ones(1, 4, dtype=torch.bool)), torch.ones(1, 4))


def test_a_list_is_for_the_policies_of_all_its_parts():
    assert make({"method": "gcpo"}, {"method": "random"}).policies == ("tokens",)
    assert make(Factor(), Term()).policies == ("tokens", "steps")


def test_a_guard_as_text_is_a_guard():
    """As a command line's JSON may have it."""
    parts = [Term().to_dict(), "gcpo"]
    assert Mix(parts, guard="true").guard is True
    assert Mix(parts, guard="False").guard is False
    with pytest.raises(TypeError, match="`guard` must be bool, got 'perhaps'"):
        Mix(parts, guard="perhaps")
