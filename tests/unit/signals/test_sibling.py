"""Siblings as hints: which, and what the prompt says."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from trl_credit import batching
from trl_credit._util.once import Once
from trl_credit.signals import sibling
from trl_credit.signals.sibling import SiblingLogps, boxed_answer, sibling_prompt_of, siblings_of


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}.", "4"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} then \boxed{}", "3"),
        (r"\boxed{3} then \boxed{4", "3"),
        (r"\boxed {7}", "7"),
        ("4", None),
        (r"\boxed{", None),
    ],
)
def test_boxed_answer(text, answer):
    assert boxed_answer(text) == answer


def test_the_prompt_names_the_answer_if_there_is_a_box():
    template = "{prompt}\n<{solution}>\nAnswer: {answer}\nEnd"
    assert sibling_prompt_of("2+2?", template, r" \boxed{4} ") == "2+2?\n<\\boxed{4}>\nAnswer: 4\nEnd"
    assert sibling_prompt_of("2+2?", template, "it is 4") == "2+2?\n<it is 4>\nEnd"
    chat = [{"role": "user", "content": "2+2?"}]
    assert sibling_prompt_of(chat, template, "4")[0]["content"] == "2+2?\n<4>\nEnd"
    assert "{" not in sibling_prompt_of("2+2?", "default", "it is 4")
    assert "answer" not in sibling_prompt_of("2+2?", "default", "it is 4")
    assert "4" in sibling_prompt_of("2+2?", "default", r"\boxed{4}")


COMPLETIONS = [[1, 2], [3], [4], [5, 6], [], [7], [8], [9]]
GROUPS = [0, 0, 0, 0, 0, 1, 1, 0]
REWARDS = [1.0, 0.0, 1.0, 0.2, 1.0, 1.0, 0.0, math.nan]


def test_siblings():
    def right(row, threshold=0.0):
        return sorted(siblings_of(row, COMPLETIONS, GROUPS, REWARDS, "right", threshold))

    def wrong(row, threshold=0.0):
        return sorted(siblings_of(row, COMPLETIONS, GROUPS, REWARDS, "wrong", threshold))

    assert right(0) == [2, 3]  # not itself, nor the empty one, nor one without a reward
    assert right(1) == [0, 2, 3]
    assert right(7) == [0, 2, 3]
    assert wrong(0) == [1]
    assert wrong(1) == []
    assert right(5) == []
    assert (right(0, 0.5), wrong(0, 0.5)) == ([2], [1, 3])


def test_the_order_is_random_but_depends_on_the_tokens_only():
    """Not on places among processes, nor on earlier draws: a resumed run draws the same."""
    firsts = Counter()
    for seed in range(300):
        completions = [[seed, i] for i in range(4)]
        order = siblings_of(0, completions, [0] * 4, [1.0] * 4, "right", 0.0)
        assert sorted(order) == [1, 2, 3]
        firsts[order[0]] += 1
        back = siblings_of(3, completions[::-1], [0] * 4, [1.0] * 4, "right", 0.0)
        assert [3 - i for i in back] == order
    assert all(count > 60 for count in firsts.values())


def test_completions_are_gathered_once_for_all_hints(monkeypatch):
    """Whatever their kind, place, template and threshold."""
    gathered = []
    monkeypatch.setattr(sibling, "gather_object", lambda rows: gathered.append("completions") or rows)
    accelerator = SimpleNamespace(process_index=0, gather=lambda tensor: gathered.append("numbers") or tensor)
    context = SimpleNamespace(
        accelerator=accelerator, tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: str(ids))
    )
    ids = torch.tensor([row + [0] * (2 - len(row)) for row in COMPLETIONS])
    batch = {
        "completion_ids": ids, "completion_mask": (ids > 0).long(), batching.GROUPS: torch.tensor(GROUPS),
        batching.REWARDS: torch.tensor(REWARDS), batching.SHARED: Once(),
    }  # fmt: skip
    hints = [
        SiblingLogps("right", 0, "{prompt}{solution}"),
        SiblingLogps("wrong", 0, "{prompt}{solution}"),
        SiblingLogps("wrong", 1, "{prompt}{solution}", 0.5),
        SiblingLogps("right", 0, "{prompt} {solution}", 0.5),
    ]
    prompts = [f"p{row}" for row in range(len(COMPLETIONS))]
    found = [hint.source().second_prompts(context, [], prompts, batch) for hint in hints]
    assert sorted(gathered) == ["completions", "numbers", "numbers"]
    for hint, seconds in zip(hints, found, strict=True):
        for row, second in enumerate(seconds):
            kinds = {
                kind: siblings_of(row, COMPLETIONS, GROUPS, REWARDS, kind, hint.threshold)
                for kind in ("right", "wrong")
            }
            own = kinds[hint.kind]
            if len(own) <= hint.place or not all(kinds.values()):
                assert second is None
            else:
                assert second == hint.template.format(prompt=f"p{row}", solution=COMPLETIONS[own[hint.place]])
    assert [sum(second is not None for second in seconds) for seconds in found] == [5, 5, 4, 6]


def test_kinds():
    with pytest.raises(ValueError, match="`kind` must be 'right' or 'wrong', got 'left'"):
        SiblingLogps("left")
