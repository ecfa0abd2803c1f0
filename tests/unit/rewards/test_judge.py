"""Verdicts of the judge."""

import json
import re
import signal
import time
from collections import Counter

import pytest
from helpers import ROOT, TESTS
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_credit.evaluation.config import pattern_of, prompts_of
from trl_credit.rewards import REWARDS, build_reward, judged, required_columns
from trl_credit.rewards import judge as judge_module
from trl_credit.rewards.judge import THINKING_TAGS, Judgement, answer_part, judge
from trl_credit.rewards.patterns import ANSWER_PATTERNS
from trl_credit.rewards.verifier import MathVerifier, Verdict
from trl_credit.statistics.repeated import majority_at_k


ROWS = [json.loads(line) for line in (TESTS / "data" / "judged_answers.jsonl").read_text().splitlines()]

DOCS = ROOT / "docs" / "judging-differences.md"

HARD = r"\int_0^1 e^{\sin(x^3)}\cos(x^2)\,dx"  # sympy takes minutes


class Remembering(MathVerifier):
    """Verifies each request once: what the judge and plain math-verify are both asked."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.asked, self.known = [], {}

    def verify(self, completions, solutions, **kwargs):
        known = self.known.setdefault(json.dumps(kwargs), {})
        requests = list(zip(completions, solutions, strict=True))
        self.asked += requests
        new = [request for request in dict.fromkeys(requests) if request not in known]
        if new:
            known |= zip(new, super().verify(*zip(*new, strict=True), **kwargs), strict=True)
        return [known[request] for request in requests]


class NoWorkers:
    """For answers that no worker may see."""

    def verify(self, completions, solutions, function):
        pytest.fail(f"asked for {completions}")


class Fixed:
    """Finds nothing in any text."""

    def verify(self, completions, solutions, function):
        return [Verdict(0.0, "[7, '7']", "[unparseable]") for _ in completions]


@pytest.fixture(scope="module")
def pool():
    with Remembering(workers=2, time_limit=5.0) as pool:
        yield pool


@pytest.fixture(scope="module")
def judgements(pool):
    return judge([row["completion"] for row in ROWS], [row["solution"] for row in ROWS], pool)


def one(completion, solution="204", verifier=None) -> Judgement:
    return judge([completion], [solution], verifier)[0]


# The labelled set


@pytest.mark.slow
def test_labelled_set(judgements):
    wrong = [
        (row["kind"], row["completion"][-80:], row["solution"], judgement)
        for row, judgement in zip(ROWS, judgements, strict=True)
        if judgement.correct != row.get("verdict", row["correct"])
    ]
    assert not wrong


def test_the_set_is_what_it_says():
    assert len(ROWS) == len({(row["completion"], row["solution"]) for row in ROWS}) >= 300
    labels = Counter(row["correct"] for row in ROWS)
    assert min(labels[True], labels[False]) >= 200
    kinds = Counter(row["kind"] for row in ROWS)
    for kind in (
        "integer form",
        "near miss",
        "hostile",
        "other language",
        "thinking",
        "refusal or empty",
        "Answer line",
        "bare LaTeX solution",
        "word problem",
        "text",
        "tolerance",
        "Unicode",
        "option letter",
    ):
        assert kinds[kind] >= 20, kind
    verdicts = {(row["kind"], row["correct"]) for row in ROWS}
    for kind in (
        "text",
        "tolerance",
        "clock time",
        "ratio",
        "number base",
        "mixed number",
        "Unicode",
        "plain text",
        "LaTeX dialect",
        "degrees in functions",
        "repeating decimal",
        "inequality and interval",
        "option letter",
        "equation and value",
        "JSON number",
        "percent text",
        "unit text",
        "hedge",
        "heading",
        "framebox",
        "spaced number",
        "date or code",
        "phrase",
        "formula",
        "qualifier",
        "not finite",
    ):
        assert {(kind, True), (kind, False)} <= verdicts, kind
    known = [row for row in ROWS if "known" in row]
    assert len(known) <= 10
    assert all(row["verdict"] != row["correct"] for row in known)


@pytest.mark.slow
def test_disagreements_with_plain_math_verify(pool, judgements):
    """Each is recorded, with the number of the difference it comes from, and is in the document; and no other is."""
    plain = pool.verify([row["completion"] for row in ROWS], [row["solution"] for row in ROWS])
    for row, judgement, verdict in zip(ROWS, judgements, plain, strict=True):
        recorded = row.get("plain", judgement.correct)
        assert (verdict.reward == 1.0) == recorded, row
        assert ("difference" in row) == ("plain" in row) == (recorded != judgement.correct), row
    assert document() in DOCS.read_text()


def document() -> str:
    """The part of docs/judging-differences.md that follows from the set."""
    differences = judge_module.__doc__.split("Differences from plain")[1]
    rules = dict(re.findall(r"^(\d+)\. ((?:.|\n   )+)", differences, re.MULTILINE))
    lines = []
    for number, rule in rules.items():
        rows = [row for row in ROWS if row.get("difference") == int(number)]
        lines.append(f"{number}. {' '.join(rule.split())}\n")
        lines += [f"    - {_shown(row)}: {_word(not row['plain'])}, plain {_word(row['plain'])}" for row in rows]
        lines += [""] if rows else []
    lines.append("## Known to be wrong\n")
    lines += [
        f"- {_shown(row)}: wanted {_word(row['correct'])}, is {_word(row['verdict'])}; {row['known']}"
        for row in ROWS
        if "known" in row
    ]
    return "\n".join(lines)


def _shown(row: dict) -> str:
    text, solution = (
        json.dumps(row[name], ensure_ascii=False)[1:-1].replace("\\\\", "\\").replace('\\"', '"')
        for name in ("completion", "solution")
    )
    text = text.removeprefix("Adding the cases, we find that the answer is ")
    text = text if len(text) <= 80 else "..." + text[-77:]
    return f"`` {text} `` for `{solution}`"


def _word(correct: bool) -> str:
    return "correct" if correct else "not correct"


def test_all_differences_have_a_row():
    numbers = {row["difference"] for row in ROWS if "difference" in row}
    assert numbers == set(range(1, 18)) - {10}  # which is test_long_answers


# What a judgement says


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"\boxed{0204}", Judgement(True, "0204", "204", "judged", r"\boxed{0204} is the integer 204.")),
        (r"\boxed{205}", Judgement(False, "205", "205", "judged", r"\boxed{205} is the integer 205, not 204.")),
        ("Answer: 1,204", Judgement(False, "1,204", "1204", "judged", "Answer: 1,204 is the integer 1204, not 204.")),
        (
            "<think>x",
            Judgement(False, None, None, "unparsed", "The thinking section never ends, so there is no answer."),
        ),
        ("", Judgement(False, None, None, "empty", "There is no text.")),
        (None, Judgement(False, None, None, "empty", "There is no text.")),
        ("x</think> \n", Judgement(False, None, None, "empty", "There is no text after the thinking.")),
        (
            "x",
            Judgement(False, None, None, "unparsed", r'There is no \boxed{...}, and no line "Answer: ...".'),
        ),
        (
            r"\boxed{204",
            Judgement(False, None, None, "unparsed", 'Its boxes are empty or not closed, and no line "Answer: ...".'),
        ),
    ],
)
def test_judgements_without_workers(completion, expected):
    assert one(completion, verifier=NoWorkers()) == expected


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        (r"\boxed{1/2}", "$0.5$", (True, "1/2", "1/2", "judged", "1/2 equals 1/2.")),
        (r"\boxed{1/3}", "$0.5$", (False, "1/3", "1/3", "judged", "1/3 does not equal 1/2.")),
        (r"\boxed{x=206}", "204", (False, "x=206", "206", "judged", "206 does not equal 204.")),
        (r"\boxed{?}", "204", (False, "?", "?", "judged", r"\boxed{?} is not 204.")),
        ("The answer is $204$", "204", (True, "204", "204", "judged", "204 equals 204.")),
        (
            "The answer is 204",
            "204",
            (False, None, None, "unparsed", r'There is no \boxed{...}, and no line "Answer: ...".'),
        ),
        (
            r"\boxed{5}",
            "The proof is left to the reader, who knows how, from any book of algebra.",
            (
                None,
                "5",
                "5",
                "judged",
                "The solution 'The proof is left to the reader, who knows how, from any book of algebra.' cannot be parsed.",
            ),
        ),
        (
            "",
            "The proof is left to the reader, who knows how, from any book of algebra.",
            (
                None,
                None,
                None,
                "empty",
                "The solution 'The proof is left to the reader, who knows how, from any book of algebra.' cannot be parsed.",
            ),
        ),
        (
            "x",
            "The proof is left to the reader, who knows how, from any book of algebra.",
            (
                None,
                None,
                None,
                "unparsed",
                "The solution 'The proof is left to the reader, who knows how, from any book of algebra.' cannot be parsed.",
            ),
        ),
        (r"\boxed{5}", "", (None, "5", "5", "judged", "The solution '' cannot be parsed.")),
        (r"\boxed{5}", " \n", (None, "5", "5", "judged", "The solution '' cannot be parsed.")),
        (r"\boxed{}", "", (None, None, None, "unparsed", "The solution '' cannot be parsed.")),
        (
            r"\boxed{\sqrt{12}}",
            r"2\sqrt3",
            (True, r"\sqrt{12}", "2*sqrt(3)", "judged", "2*sqrt(3) equals 2*sqrt(3)."),
        ),
        (r"\boxed{2}", r"2\sqrt3", (False, "2", "2", "judged", "2 does not equal 2*sqrt(3).")),
        (r"\boxed{27}", "27.0", (True, "27", "27", "judged", "27 equals 27.")),
    ],
)
def test_judgements_of_math_verify(completion, solution, expected, pool):
    assert one(completion, solution, pool) == Judgement(*expected)


@pytest.mark.parametrize(
    ("solution", "given"),
    [
        ("p - q", r"\boxed{p - q}"),
        ("ab + bc + ca", r"\boxed{ab + bc + ca}"),
        ("yes", r"\boxed{yes}"),
        ("Ann, Bob, and Cy", r"\boxed{Ann, Bob, and Cy}"),
        ("5 square meters.", r"\boxed{5 square meters}"),
        (" 2\n \\sqrt3\n", r"\boxed{2 \sqrt3}"),
        (r"\text{all the real numbers}", r"\boxed{\text{all the real numbers}}"),
        (r"\begin{pmatrix}1\\(2)\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\(2)\end{pmatrix}}"),
        # A sentence, or with delimiters
        ("There are 12\napples", "There are 12\napples"),
        (r"$\frac12$", r"$\frac12$"),
        (r"\(\frac12\) m", r"\(\frac12\) m"),
        (r"\[x\]", r"\[x\]"),
        ("$18.50", "$18.50"),
        (r"so \boxed{x}", r"so \boxed{x}"),
    ],
)
def test_what_math_verify_is_given_as_the_solution(solution, given):
    class Noting(Fixed):
        def verify(self, completions, solutions, function):
            assert set(solutions) == {given}
            return super().verify(completions, solutions, function)

    judge([r"\boxed{1}", "", "the answer is 1"], [solution] * 3, Noting())


@pytest.mark.slow
def test_failures(pool):
    text = HARD
    assert one(rf"\boxed{{{text}}}", "204", pool) == Judgement(
        False, text, f"{text} (unverified)", "judged", "verification timed out: not correct", "timed_out"
    )


def test_long_answers():
    """Not parsed; integers are, by their digits."""
    text = "204+" + "0+" * 6_000 + "0"
    result = one(rf"\boxed{{{text}}}", verifier=NoWorkers())
    assert not result.correct
    assert result.answer == text[:1_000]
    assert len(result.vote) < 1_000
    assert result.reason == "The answer has 12,005 characters: not parsed, not correct."
    other = one(rf"\boxed{{{text}+0}}", verifier=NoWorkers())
    assert other.vote != result.vote
    assert one(r"\boxed{" + "0" * 9_000 + "204}", verifier=NoWorkers()).correct


def test_votes(judgements, pool):
    """All correct answers of a problem have one vote, and no wrong one has it."""
    votes = {}
    for row, judgement in zip(ROWS, judgements, strict=True):
        assert (judgement.vote is None) == (judgement.answer is None) == (judgement.status != "judged")
        if judgement.vote is not None:
            votes.setdefault((row["solution"], judgement.correct), set()).add(judgement.vote)
    for (solution, correct), of_it in votes.items():
        if correct:
            assert len(of_it) == 1, (solution, of_it)
            assert not of_it & votes.get((solution, False), set())
    assert votes["204", True] == {"204"}
    assert votes["025", True] == {"25"}
    # Equal wrong answers in several forms
    forms = ["205", "0205", "205.0", "x = 205", r"\frac{410}{2}", "$205$", "205.", "Answer: 205"]
    texts = [text if ":" in text else rf"\boxed{{{text}}}" for text in forms]
    assert {j.vote for j in judge(texts, ["204"] * len(texts), pool)} == {"205"}


def test_the_same_answer_is_verified_once(pool):
    texts = [f"{i} {i} \\boxed{{\\frac{{51{i % 2}}}{{7}}}}" for i in range(10)]
    before = len(pool.asked)
    results = judge(texts * 2, ["204"] * 20, pool)
    assert len(pool.asked) - before == 2
    assert len(set(results)) == 2
    assert judge([], [], NoWorkers()) == []
    with pytest.raises(ValueError, match="zip"):
        judge(["x"], [])


def test_thinking_tags_can_be_given():
    completion = r"<think>\boxed{204}<end>"
    assert one(completion, verifier=NoWorkers()).status == "unparsed"
    tags = [("<start>", "<end>")]
    assert judge([completion], ["204"], NoWorkers(), tags)[0].status == "empty"
    assert judge([completion[:-5]], ["204"], NoWorkers(), tags)[0].correct
    assert ("<think>", "</think>") in THINKING_TAGS


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", ""),
        ("#5", "#5"),
        ("<think>a</think>#5", "#5"),
        ("a</think>b<think>c</think>\n#5", "\n#5"),
        ("a</thinking>b</think>#5", "#5"),
        ("a</think>", ""),
        ("<think>a", None),
        ("a</think>#5<think>", None),
        ("a</think>#5[THINK]", None),
    ],
)
def test_answer_part(text, part):
    assert answer_part(text) == part


def test_answer_part_with_given_tags():
    assert answer_part("<think>a<end>#5", [("<start>", "<end>")]) == "#5"


HOSTILE = {
    "open boxes": r"\boxed{" * 150_000,
    "nested boxes": r"\boxed{" * 75_000 + "1" + "}" * 75_000,
    "nested empty boxes": r"\boxed{" * 75_000 + "}" * 75_000,
    "open braces": r"\boxed" + "{" * 1_000_000,
    "nested braces": r"\boxed" + "{" * 500_000 + "}" * 500_000,
    "backslashes": "\\boxed{\\" + "\\" * 1_000_000,
    "spaces": r"\boxed" + " " * 1_000_000,
    "boxes without braces": r"\boxed " * 150_000,
    "digits": r"\boxed{" + "1" * 1_000_000 + "}",
    "digits without braces": r"\boxed " + "1" * 1_000_000,
    "dollars": r"\boxed{" + "$" * 1_000_000 + "}",
    "stars": "*" * 1_000_000,
    "lines": "answer:\n" * 130_000 + "\\boxed{",
    "thinking": "<think>" * 150_000,
    "fractions": r"\boxed{" + r"\frac{" * 1_500 + "}" * 1_500 + "}",
    "texts": r"\boxed{" + r"\text{" * 100_000 + "}" * 100_000 + "}",
    "optional arguments": r"\framebox[" * 100_000,
    "headings": "**Final Answer**\n" * 60_000,
    "roots": r"\boxed{" + "√²½" * 3_000 + "}",
    "byte-order marks": "\ufeff" * 1_000_000,
    "answer tags": "<answer>" * 125_000,
    "hashes": "#" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte(name):
    """A second or two: what is quadratic would take minutes, and is not waited for."""

    def too_long(*_):
        pytest.fail("not linear in the length")

    previous = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, 20)
    try:
        assert not one(HOSTILE[name], verifier=Fixed()).correct
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


@pytest.mark.parametrize("name", ["open braces", "nested braces", "nested boxes", "texts"])
def test_a_box_in_a_million_braces_is_read_in_a_window(name):
    start = time.process_time()
    one(HOSTILE[name], verifier=Fixed())
    assert time.process_time() - start < 1.5
    # And the last box is found before and after any amount of text
    assert one(r"\boxed{204}" + "{" * 200_000, verifier=NoWorkers()).correct
    assert one("{" * 200_000 + r"\boxed{1}" * 10_000 + r"\boxed{204}" + "x" * 100_000, verifier=NoWorkers()).correct


@pytest.mark.parametrize("pattern", ANSWER_PATTERNS)
@pytest.mark.parametrize("name", ["answer tags", "hashes", "stars", "open braces"])
def test_a_megabyte_with_a_pattern(name, pattern):
    start = time.process_time()
    assert not judge([HOSTILE[name]], ["204"], Fixed(), answer_pattern=pattern)[0].correct
    assert time.process_time() - start < 2


# Patterns


@pytest.mark.parametrize(
    ("pattern", "completion", "answer"),
    [
        ("answer_tag", "<answer>204</answer>", "204"),
        ("answer_tag", "<answer>\n204\n</answer> done", "204"),
        ("answer_tag", "<answer>1</answer> no, <answer>204</answer>", "204"),
        ("answer_tag", r"<answer>It is \boxed{204}.</answer>", "204"),
        ("answer_tag", "<answer>204</answer><answer></answer>", "204"),
        ("answer_tag", "<answer>1 <answer>204</answer>", "204"),
        ("answer_tag", "<answer>204", None),
        ("answer_tag", r"\boxed{204}", None),
        ("answer_tag", "<think><answer>204</answer>", None),
        ("gsm8k", "48 + 24 is 72\n#### 204", "204"),
        ("gsm8k", "#### 1\n####204\n", "204"),
        ("gsm8k", "#### ", None),
        ("gsm8k", "204", None),
        (r"so (\d+)", "so 1, so 204", "204"),
    ],
)
def test_patterns(pattern, completion, answer):
    result = judge([completion], ["204"], NoWorkers(), answer_pattern=pattern)[0]
    assert (result.answer, result.correct) == (answer, answer is not None)
    if answer is None and "think" not in completion:
        assert result.reason == "Nothing in the text matches `answer_pattern`."


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("answer_tags", "unknown name 'answer_tags'. Did you mean 'answer_tag'"),
        ("gsm", "unknown name 'gsm'"),
        ("(", r"'\(' is no regular expression"),
        ("#", "'#' must have one group, the answer; it has 0"),
        ("(a)(b)", "it has 2"),
        (5, "must be text, got 5"),
    ],
)
def test_wrong_patterns_are_refused_before_the_run(pattern, message):
    with pytest.raises(ValueError, match=f"`answer_pattern`.*{message}"):
        judge([], [], NoWorkers(), answer_pattern=pattern)
    with pytest.raises(ValueError, match=f"`reward_funcs`: 'judged': `answer_pattern`.*{message}"):
        build_reward({"name": "judged", "answer_pattern": pattern})


def test_the_reward_has_the_pattern_of_the_evaluation():
    reward = build_reward('{"name": "judged", "answer_pattern": "answer_tag"}')
    texts = ["<answer>204</answer>", "<answer>205</answer>", r"\boxed{204}"]
    assert reward(texts, ["204"] * 3) == [1.0, 0.0, 0.0]
    assert reward.__name__ == "judged"
    assert pattern_of({"reward_funcs": ["accuracy", {"name": "judged", "answer_pattern": "gsm8k"}]}) == "gsm8k"
    assert pattern_of({"reward_funcs": ['{"name": "judged", "answer_pattern": "gsm8k"}']}) == "gsm8k"
    assert pattern_of({"reward_funcs": "judged"}) is None
    assert prompts_of({"reward_funcs": [{"name": "judged", "answer_pattern": "gsm8k"}]})["answer_pattern"] == "gsm8k"


# Properties


plain_text = st.text(st.characters(exclude_characters="\\{}<>[]|◁▷")).filter(
    lambda text: "nswer" not in text.casefold()
)


@given(
    solution=st.integers(0, 999),
    offset=st.sampled_from([0, 0, 1, -1, 1000, -1000]),
    zeros=st.integers(0, 4),
    sign=st.sampled_from(["", "", "+", "-", "\u2212"]),
    form=st.sampled_from(["{}", "${}$", r"\({}\)", r"\text{{{}}}", r"\mathbf{{{}}}", " {}. ", "**{}**", r"\,{}\;"]),
)
def test_integers_against_floats(solution, offset, zeros, sign, form):
    digits = "0" * zeros + str(abs(solution + offset))
    value = float(digits) * (-1 if sign in ("-", "\u2212") else 1)
    result = one(rf"\boxed{{{form.format(sign + digits)}}}", f"{solution:03}", NoWorkers())
    assert result.correct == (value == float(solution))
    assert float(result.vote) == value


@given(
    number=st.integers(1000, 10**15),
    separator=st.sampled_from([",", "{,}", r"\,", r",\!", r"\ "]),
    solution=st.integers(0, 2),
)
def test_thousands_against_floats(number, separator, solution):
    text = f"{number:,}".replace(",", separator)
    for want in (number, number % 1000, number + solution):
        result = one(rf"\boxed{{{text}}}", str(want), NoWorkers())
        assert result.correct == (float(want) == float(number))


@given(st.lists(st.tuples(plain_text, st.integers(0, 9)), min_size=1), plain_text, st.integers(0, 9))
def test_the_last_box_counts(boxes, tail, solution):
    text = "".join(rf"{before}\boxed{{{number}}}" for before, number in boxes) + tail
    result = one(text, str(solution), NoWorkers())
    assert result.answer == str(boxes[-1][1])
    assert result.correct == (boxes[-1][1] == solution)


@given(plain_text, plain_text, st.sampled_from([r"\boxed{204}", r"\boxed{205}", r"\boxed{\boxed{ 0204 }}"]))
def test_text_around_does_not_matter(before, after, box):
    want = one(box, verifier=NoWorkers())
    assert one(before + box + after, verifier=NoWorkers()) == want
    assert one(f"<think>{before}\\boxed{{1}}</think>{box}{after}", verifier=NoWorkers()) == want


PIECES = r"\boxed{ \boxed \fbox{ \frac \text{ { } \ \{ \, $ 5 204 , . - ** Answer: <think> </think> ° ٢ ² ½"

pieces = st.sampled_from([*PIECES.split(), "\n", " ", "\x00", "\ud83d"])


@settings(max_examples=1000)
@given(st.lists(pieces | st.text(max_size=3)).map("".join), st.sampled_from(["204", "0", "$x$", "", "\ud83d"]))
def test_never_raises(text, solution):
    result = one(text, solution, Fixed())
    assert isinstance(result.correct, bool)
    assert (result.answer is None) == (result.status != "judged")
    json.dumps([result.answer, result.vote, result.reason])
    assert "\n" not in result.reason


class Random:
    """Verdicts that fail at random, with and without what was parsed."""

    def __init__(self, draw):
        self.draw = draw

    def verify(self, completions, solutions, function):
        assert len(set(zip(completions, solutions, strict=True))) == len(completions)
        return [self.draw(verdicts) for _ in completions]


FORMS = ["0.5", "1/2", r"\frac{1}{2}", "5", "x", "0.5 (unverified)", "x" * 1_001]

parsed = st.sampled_from(
    ["[1/2, '1/2']", "[0.500000000000000, '0.5']", "[5, '5']", "['x']", "[x, 'x']", "[unparseable]", "[timed_out]"]
)

verdicts = st.builds(
    Verdict, st.sampled_from([0.0, 1.0]), parsed, parsed, st.sampled_from(["ok", "timed_out", "crashed"])
)

answers = st.sampled_from(FORMS).map(r"\boxed{{{}}}".format) | st.sampled_from(["", "x", "Answer: $5", "answer $5$"])


@settings(max_examples=1000)
@given(st.lists(st.tuples(answers, st.sampled_from(FORMS)), min_size=1, max_size=12), st.data())
@pytest.mark.slow
def test_votes_whatever_the_verifier_says(pairs, data):
    texts, solutions = zip(*pairs, strict=True)
    results = judge(texts, solutions, Random(data.draw))
    for solution in set(solutions):
        mine = [result for result, of_it in zip(results, solutions, strict=True) if of_it == solution]
        right = {result.vote for result in mine if result.correct}
        assert len(right) <= 1
        assert None not in right
        assert not right & {result.vote for result in mine if not result.correct}
        assert all((result.vote is None) == (result.answer is None) for result in mine)
        majority_at_k([[result.vote for result in mine]], [[result.correct for result in mine]], len(mine))


@pytest.mark.parametrize("solution", ["0.5", r"\frac{1}{2}"])
def test_votes_where_one_verification_fails(solution):
    """Its verdict has nothing of the solution; it comes first, and its text is the vote of the correct answers."""

    class OneFails:
        def verify(self, completions, solutions, function):
            failed = Verdict(0.0, "[timed_out]", "[timed_out]", "timed_out")
            return [failed, *[Verdict(1.0, "[1/2, '1/2']", "[1/2, '1/2']")] * (len(completions) - 1)]

    texts = [r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{2/4}"]
    results = judge(texts, [solution] * 3, OneFails())
    assert [result.correct for result in results] == [False, True, True]
    assert [result.vote for result in results] == ["1/2 (unverified)", "1/2", "1/2"]


# The reward


def test_reward(pool, monkeypatch):
    monkeypatch.setattr("trl_credit.rewards.judge.default_verifier", lambda: pool)
    texts = [
        r"\boxed{204}",
        r"\boxed{205}",
        "",
        r"<think>\boxed{204}</think>",
        rf"\boxed{{{HARD}}}",
        r"\boxed{204}",
    ]
    solutions = [
        204,
        "204",
        "204",
        "204",
        "204",
        "The proof is left to the reader, who knows how, from any book of algebra.",
    ]
    columns, metrics = {}, {}
    want = [1.0, 0.0, 0.0, 0.0, 0.0, None]
    assert judged(texts, solutions, columns.__setitem__, metrics.__setitem__, prompts=[]) == want
    assert metrics == {"verifier/timeouts": 1.0, "verifier/crashes": 0.0}
    assert columns["solution"] == ["204"] * 5 + [
        "The proof is left to the reader, who knows how, from any book of algebra."
    ]
    assert columns["answer_parsed"] == ["204", "205", *["[unparseable]"] * 2, HARD, "204"]
    assert columns["judgement"][0] == r"\boxed{204} is the integer 204."
    chats = [[{"role": "tool", "content": "1"}, {"role": "assistant", "content": text}] for text in texts]
    assert judged(chats, solutions) == want
    assert build_reward("judged") is REWARDS["judged"] is judged
    assert required_columns(judged) == ["solution"]
