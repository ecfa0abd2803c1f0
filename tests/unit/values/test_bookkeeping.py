"""Where a sum goes wrong, and how it would go right."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_credit.toy.arithmetic import STYLES, WORKED, correct_answer, make_problem, prompt_of, solution_parts
from trl_credit.values.bookkeeping import canonical_rest, first_mistake, problem_of, rest_parts


SEEDED = settings(deadline=None, max_examples=60)
SEED, STYLE = st.integers(0, 10_000), st.sampled_from([*STYLES, WORKED])


def test_prompts():
    assert problem_of("~83+48+14=").style == "letters"
    assert problem_of("!@83+48=").terms == (83, 48)
    assert problem_of("What is 83+48=") is None
    assert problem_of("Calculate 83 + 4 + 12.\n").terms == (83, 4, 12)
    assert problem_of("Calculate 83 - 4.\n") is None
    assert problem_of("83=") is None
    with pytest.raises(ValueError, match="no sum"):
        first_mistake("83 plus 48", "131")


@SEEDED
@given(seed=SEED, num_terms=st.integers(2, 5), style=STYLE)
def test_planted_mistakes_are_found(seed, num_terms, style):
    rng = random.Random(seed)
    terms = make_problem(rng, num_terms)
    prompt = prompt_of(terms, style)
    right = "".join(text for text, _ in solution_parts(terms, rng, style=style))
    assert first_mistake(prompt, right) is None
    copied = style == "copy" and rng.random() < 0.5
    wrong_steps = set() if copied else {rng.randrange(num_terms - 1)}
    parts = solution_parts(terms, rng, wrong_steps, style, wrong_copy=copied)
    wrong = "".join(text for text, _ in parts)
    assert first_mistake(prompt, wrong) == sum(len(text) for text, _ in parts[: [r for _, r in parts].index("error")])


@SEEDED
@given(seed=SEED, num_terms=st.integers(2, 5), style=STYLE)
def test_any_right_prefix_has_a_right_rest(seed, num_terms, style):
    rng = random.Random(seed)
    terms = make_problem(rng, num_terms)
    prompt = prompt_of(terms, style)
    right = "".join(text for text, _ in solution_parts(terms, rng, style=style))
    for end in range(len(right) + 1):
        prefix = right[:end]
        assert first_mistake(prompt, prefix, finished=False) is None
        assert first_mistake(prompt, prefix) == (None if end == len(right) else end)
        rest = canonical_rest(prompt, prefix, rng)
        assert first_mistake(prompt, prefix + rest) is None
        if style == WORKED:
            assert (prefix + rest).endswith(rf". \boxed{{{sum(terms)}}}")
        else:
            assert correct_answer([prefix + rest], [str(sum(terms))]) == [1.0]
        if style in ("plain", "copy", WORKED):
            assert prefix + rest == right
        if style == "letters":  # six letters before every step, those that are there included
            assert len(prefix + rest) == len(right)
        if style != WORKED:  # whose box is in letters
            steps = "".join(text for text, role in rest_parts(prompt, prefix, rng) if role == "step")
            assert not any(character.isalpha() for character in steps)


@pytest.mark.parametrize(
    ("completion", "place"),
    [
        ("83+48=131;131+14=145;#145", None),
        ("83+48=132;", 8),
        ("83+48=0131;", 6),
        ("83+48=131;131+14=145;#1456", 24 + 1),
        ("83+48=131;131+14=145;#145 ", 25),
        ("83+48=13", 8),
        ("", 0),
        ("#145", 0),  # right by the reward, but not written out
        ("83+48=132;132+14=145;#145", 8),  # two mistakes that cancel
    ],
)
def test_first_mistake(completion, place):
    assert first_mistake("83+48+14=", completion) == place
    if place is not None and place < len(completion):
        assert first_mistake("83+48+14=", completion, finished=False) == place
        assert canonical_rest("83+48+14=", completion) is None


def test_the_length_of_style_text_decides_nothing():
    assert first_mistake("~83+48=", "abc83+48=131;#131") is None
    assert first_mistake("&83+48=", "83+48=131;#131") is None
    assert canonical_rest("~83+48=", "abcdefghi") == "83+48=131;#131"
    assert canonical_rest("&83+48=", "so th") == "en 83+48=131;#131"
    assert canonical_rest("&83+48=", "so ") == "83+48=131;#131"
    assert first_mistake("83+48=", "x83+48=131;#131") == 0
