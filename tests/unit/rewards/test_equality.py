"""Equality of answers."""

import time

import pytest

from trl_credit.rewards.equality import compare
from trl_credit.rewards.equality.compare import same


# Without workers: the comparison itself


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        (r"7+0\cdot 9^{9^{9^{9}}}", "7", False),
        (r"9^{9^{9^{9}}}", r"9^{9^{9^{9}}}", True),
        (r"9^{9^{9^{9}}}+1", r"9^{9^{9^{9}}}", False),
        (r"(10^{9})!", "1", False),
        (r"\sum_{k=1}^{10^{9}}\frac{1}{k}", "21", False),
        (r"\binom{10^{9}}{10^{8}}", "1", False),
        ("(" * 3_000 + "5" + ")" * 3_000, "6", False),
        ("√" * 3_000, "6", False),
        ("1,2," * 2_000 + "3", "6", False),
        ("9" * 9_000, r"\frac{1}{2}", False),
        ("x^" * 2_000 + "2", "x", False),
        (r"\frac{1}{0}", "0", False),
        ("", "0", False),
    ],
)
def test_what_would_take_for_ever_takes_a_moment(answer, gold, correct):
    start = time.process_time()
    assert same(answer, gold) is correct
    assert time.process_time() - start < 3


# Found by reviewers: what a policy may learn to write


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("7", "7 tenths"), ("5", "5 halves"), ("3", "3 quarters"), ("5", r"5 \text{ hundredths}"), ("100", "100 negative"),
        ("5", r"5 \text{ or six}"), ("B", "B as well as C"), ("A", "(A) is wrong"), ("A", "A isn't it"),
        ("x+y+z=0", "0"), ("x+y=5", "5"), ("xy=1", "1"), (r"\sin x = 0", "0"), ("ab=c", "c"), ("a/b=3", "3"),
        ("-679", "555-1234"), ("192.168.0.2", "192.168.0.1"), ("2024-05-03", "2024-03-05"), ("0", "1 000"),
        ("3 2 1", "1 2 3"), ("2 R 3", "3 R 2"), ("N2O", "NO2"), ("Pb", "PB"), ("20% increase", "20% decrease"),
        ("5 kHz", "5 Hz"), (r"\$5", "€5"), ("2/0", "1/0"), ("i", "I"), ("10", r"\approx 10"),
    ],
)  # fmt: skip
def test_wrong_answers_are_not_accepted(solution, answer):
    assert compare.verdict(rf"\boxed{{{answer}}}", rf"\boxed{{{solution}}}").correct is False


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("B", "B because C is not valid"), ("A", "A. the first one"), ("5", "=5"), ("x=5", "5"),
        (r"\theta=30^\circ", r"30^\circ"), ("AB=5", "5"), ("f(x)=2x", "2x"), ("A_1=3", "3"), ("204", "m+n=204"),
        (r"\angle ABC = 40^\circ", r"40^\circ"), ("10000", "10 000"), ("H2O", "H_2O"), ("5", "5 apples"),
    ],
)  # fmt: skip
def test_right_answers_are_not_refused(solution, answer):
    assert compare.verdict(rf"\boxed{{{answer}}}", rf"\boxed{{{solution}}}").correct is True


def test_no_exception_of_sympy_reaches_the_worker():
    for answer in (r"\sin x>0", "0." + "1" * 4_500):
        assert compare.verdict(rf"\boxed{{{answer}}}", r"\boxed{(1, 2)}").correct is False
