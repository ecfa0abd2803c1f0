"""Reward functions by name, with arguments, and by path."""

import asyncio
import functools

import pytest
from support.rewards import scaled
from trl.rewards import accuracy_reward

from trl_credit.rewards import accuracy, build_reward, required_columns


@pytest.mark.parametrize(
    ("spec", "reward"),
    [
        ("./own_rewards.py:plain", 1.0),
        ("own_rewards.py:decorated", 0.5),
        ("own_rewards.decorated", 0.5),
        ("own_rewards:plain", 1.0),
        ("own_rewards.py:Reward", 2.0),
        ({"name": "own_rewards.py:Reward", "factor": 7.0}, 7.0),
        ("own_rewards.reward", 3.0),
        ("own_rewards.reward.method", 4.0),
        ("own_rewards.py:reward.method", 4.0),
        ("own_rewards.py:part", 5.0),
        ("own_rewards.py:slow", 1.0),
        ({"name": "own_rewards.py:plain", "factor": 6.0}, 6.0),
        ({"name": "own_rewards.py:reward", "other": 6.0}, 3.0),
        ({"name": "own_rewards.py:make", "factor": 8.0}, 8.0),
        ({"name": "own_rewards.py:make_anything", "factor": 9.0, "factory": True}, 9.0),
    ],
)
def test_rewards_by_path(spec, reward, own_code):
    rewards = build_reward(spec)(completions=["a", "b"], prompts=["", ""])
    if asyncio.iscoroutine(rewards):
        rewards = asyncio.run(rewards)
    assert rewards == [reward, reward]


def test_an_absolute_path(own_code, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert build_reward(f"{own_code}/own_rewards.py:plain")(completions=["a"]) == [1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_rewards.py:plan", "'own_rewards.py' has no 'plan'. Did you mean 'plain'?"),
        ("own_rewards.decoratd", "'own_rewards' has no 'decoratd'. Did you mean 'decorated'?"),
        ("./none.py:f", "there is no file './none.py' (looked from"),
        ("no_module:f", "No module named 'no_module'"),
        ("own_rewards.py", "'own_rewards.py' is a file: write own_rewards.py:NAME"),
        ("broken.py:f", "'broken.py' cannot be imported: SyntaxError"),
        ("own_rewards.py:number", "is not a function, but int"),
        (
            "own_rewards.py:no_reward",
            "takes no `completions`, so it was called as a factory; it made int",
        ),
        ("own_rewards.py:make", "missing 1 required positional argument: 'factor'"),
    ],
)
def test_paths_that_lead_nowhere(spec, message, own_code):
    with pytest.raises(ValueError, match="`reward_funcs`: ") as raised:
        build_reward(spec)
    assert message in str(raised.value)


def test_a_wrapped_function_with_wraps_keeps_its_columns(own_code):
    from trl_credit.rewards import required_columns

    def inner(completions, solution, **kwargs):
        return []

    @functools.wraps(inner)
    def outer(*args, **kwargs):
        return inner(*args, **kwargs)

    assert required_columns(outer) == ["solution"]


# Rewards


def test_accuracy():
    solutions = ["7", "7", r"\frac{1}{2}", "sorry"]
    texts = [r"so \boxed{7}", r"\boxed{8}", r"\boxed{0.5}", r"\boxed{1}"]
    assert accuracy(texts, solutions) == [1.0, 0.0, 1.0, None]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert accuracy(chats, solutions) == accuracy_reward(chats, solutions)
    turns = [[{"role": "assistant", "content": r"\boxed{1}"}, {"role": "tool", "content": ""}, *c] for c in chats]
    assert accuracy(turns, solutions) == [1.0, 0.0, 1.0, None]
    assert accuracy(texts[:1], [7]) == [1.0]


def test_build_reward(monkeypatch):
    assert build_reward("accuracy") is accuracy
    assert build_reward("accuracy_reward") is accuracy  # TRL's name
    assert build_reward("support.rewards.scaled") is scaled
    bound = build_reward('{"name": "support.rewards.scaled", "factor": 3.0}')
    assert bound(["a"], extra=[2]) == [6.0]
    assert bound.__name__ == "scaled"
    assert required_columns(bound) == required_columns(scaled) == ["extra"]
    made = build_reward({"name": "support.rewards.make_scaled", "factor": 4.0})
    assert made(["a"], extra=[2]) == [8.0]
    trls = build_reward("get_soft_overlong_punishment", 256)  # `trl grpo` has these lengths whatever the run's are
    assert (trls.max_completion_len, trls.soft_punish_cache) == (1280, 256)
    overlong = build_reward({"name": "soft_overlong_punishment", "max_completion_len": 10, "soft_punish_cache": 4})
    assert overlong(completion_ids=[[1] * 5, [1] * 10, [1] * 12]) == [0, -1.0, -1]


@pytest.mark.parametrize(
    ("arguments", "run", "lengths"),
    [
        ({}, 20480, (20480, 4096)),  # DAPO's
        ({}, 8, (8, 1)),
        ({}, 3, (3, 1)),
        ({"max_completion_len": 100}, None, (100, 20)),
        ({"max_completion_len": 100}, 50, (100, 20)),
        ({"soft_punish_cache": 30}, 100, (100, 30)),
    ],
)
def test_lengths_of_the_run(arguments, run, lengths):
    reward = build_reward({"name": "soft_overlong_punishment", **arguments}, run)
    assert (reward.max_completion_len, reward.soft_punish_cache) == lengths


def test_length_of_the_cosine():
    for arguments, run, length in (({}, 50, 50), ({"max_len": 100}, 50, 100), ({"max_len": 100}, None, 100)):
        reward = build_reward({"name": "cosine_scaled", **arguments}, run)
        ids = [[1] * (length // 2), [1] * length]
        assert reward([r"\boxed{7}"] * 2, ["7"] * 2, completion_ids=ids) == [0.75, 0.5]


def test_a_factory_that_raises_is_named(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def make(a=1):\n    return 1 / 0\n")
    with pytest.raises(
        ValueError, match=r"own.py:make' takes no `completions`.* \{'a': 2\}, and raised ZeroDiv"
    ) as error:
        build_reward({"name": f"{file}:make", "a": 2})
    assert isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("accurcy", "unknown reward 'accurcy'. Did you mean 'accuracy'"),
        ("no_module.reward", "cannot load 'no_module.reward'"),
        ({"factor": 2}, "does not say the `name`"),
        ('{"name": ', "not valid JSON"),
        ("{name: soft_overlong_punishment", "`reward_funcs` is not valid YAML"),
        ("{name: soft_overlong_punishment, max_completion_len: 1}", "between 0 and `max_completion_len` (1), got 1"),
        ("soft_overlong_punishment", "needs `max_completion_len`, or the run's `max_completion_length`"),
        ("cosine_scaled", "needs `max_len`, or the run's `max_completion_length`"),
        ({"name": "cosine_scaled", "max_len": 0}, "`max_len` of 'cosine_scaled' must be positive, got 0"),
        ({"name": "cosine_scaled", "max_len": 9, "max_value": 1}, "unexpected keyword argument 'max_value'"),
        (
            {"name": "soft_overlong_punishment", "max_completion_len": 1},
            "between 0 and `max_completion_len` (1), got 1",
        ),
        ({"name": "soft_overlong_punishment", "max_completion_len": 9, "soft_punish_cache": 9}, "got 9"),
        ({"name": "soft_overlong_punishment", "max_completion_len": 9, "soft_punish_cache": 0}, "got 0"),
        ({"name": "soft_overlong_punishment", "max_completion_len": "9"}, "not supported between"),
        ({"name": "support.rewards.make_scaled", "facto": 1}, "unexpected keyword argument 'facto'"),
    ],
)
def test_build_reward_errors(spec, message):
    with pytest.raises(ValueError, match="`reward_funcs`") as raised:
        build_reward(spec)
    assert message in str(raised.value)
