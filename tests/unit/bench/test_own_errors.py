"""Finds the first mistake in a worked sum."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_credit.bench.own_errors import find_mistake
from trl_credit.toy.arithmetic import make_problem, solution_parts


SEEDED = settings(deadline=None, max_examples=40)


@SEEDED
@given(seed=st.integers(0, 10_000), num_terms=st.integers(2, 5), style=st.sampled_from(["plain", "letters"]))
def test_judged_as_written(seed, num_terms, style):
    rng = random.Random(seed)
    terms = make_problem(rng, num_terms)
    right = "".join(text for text, _ in solution_parts(terms, rng, style=style))
    assert find_mistake(terms, right, style) == ("right", None)
    parts = solution_parts(terms, rng, {rng.randrange(num_terms - 1)}, style)
    wrong = "".join(text for text, _ in parts)
    start = sum(len(text) for text, _ in parts[: [role for _, role in parts].index("error")])
    assert find_mistake(terms, wrong, style) == ("usable", (start, start + 1))
    for broken in (wrong[:-1] + "x", wrong + ";", wrong.replace("#", ""), wrong.replace("+", "+0", 1), ""):
        assert find_mistake(terms, broken, style) == ("malformed", None)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("83+48=131;131+14=145;#145", ("right", None)),
        ("83+48=132;132+14=145;#145", ("right", None)),  # two mistakes that cancel
        ("83+48=132;132+14=146;#146", ("usable", (8, 9))),
        ("83+48=191;191+14=205;#205", ("usable", (7, 8))),
        ("83+48=119;119+14=133;#133", ("usable", (7, 8))),  # the first of two digits
        ("83+49=132;132+14=146;#146", ("usable", (4, 5))),  # a term
        ("83+48=131;137+14=151;#151", ("usable", (12, 13))),  # the result before
        ("83+48=131;131+14=145;#146", ("usable", (24, 25))),  # the answer
        ("83+48=13;13+14=27;#27", ("usable", (8, 9))),  # a digit is missing
        ("83+48=1311;1311+14=1325;#1325", ("usable", (9, 10))),  # there is one more
        ("83+48=131;131+14=145;#14", ("usable", (24, 24))),  # the end came too early
        ("83+48=132;132+14=147;#147", ("several_mistakes", None)),
        ("83+48=132;131+14=145;#146", ("several_mistakes", None)),
        ("83+48=131;#131", ("malformed", None)),
        ("83+48=131;131+14=145;0+0=0;#145", ("malformed", None)),
        ("83+48=131;131+14=0145;#145", ("malformed", None)),
        ("83+48=131;131+14=145;#145 ", ("malformed", None)),
        ("83+48=131;131+14=145;#145\n", ("malformed", None)),
        ("83+48=131;131+14=14\u0665;#145", ("malformed", None)),
    ],
)
def test_judge(completion, expected):
    assert find_mistake([83, 48, 14], completion) == expected


def test_letters_are_six():
    assert find_mistake([8, 1], "abcdef8+1=7;#7", "letters") == ("usable", (10, 11))
    for text in ("8+1=7;#7", "abcde8+1=7;#7", "abcdefg8+1=7;#7", "abcdeF8+1=7;#7"):
        assert find_mistake([8, 1], text, "letters") == ("malformed", None)
