r"""The judge of `trl-credit eval` and of the reward `judged`: finds a completion's answer and decides if it is right.

What counts as the answer, in this order:

1. Thinking is left out: everything up to the last closing tag, whether or not its opening tag is in the completion
   (some templates put it in the prompt). A section that never ends leaves no answer.
2. With an `answer_pattern`: its last match, and nothing else.
3. The last nonempty `\boxed{...}`, `\fbox{...}` or `\framebox{...}`; the innermost of nested ones. An empty box (the
   instruction repeated) and one that is never closed (a text cut short) are skipped. Without braces, only an integer
   counts: `\boxed 5`. A line in bold below the box, `**Answer: D**`, overrides it.
4. Without a box: the last line `Answer: ...` or `Final Answer: ...`, which DAPO's prompt asks for, or the line below
   the last heading `**Final Answer**`.
5. Otherwise what math-verify finds in the text, as in the reward `accuracy`.

If answer and solution are both integers (AIME's are from 0 to 999), they are compared here, exactly. Any other answer
goes to the worker processes of a [`MathVerifier`], as `\boxed{answer}` without the text around it; a solution in bare
LaTeX is boxed too. The workers compare with the package `equality`: words, option letters and times as text,
mathematics by sympy.

Differences from plain math-verify (TRL's `accuracy_reward`, the reward `accuracy`):

1. Thinking is left out; there, a box in it counts if none follows. A section that never ends leaves no answer.
2. One box counts, the last. There, boxes close together are one list: `\boxed{5} or \boxed{7}` is {5, 7}.
3. An empty or an unclosed box is passed over. There, an empty one close to a box makes a list with it, and one that is not
   closed can hide the box before it.
4. `\fbox{...}`, `\framebox{...}`, `\boxed` with spaces before the brace and `\boxed 5` count wherever they are;
   there, only where they stand in dollars after the word "answer".
5. A line `Answer: 204`, and one below a heading `**Final Answer**`, counts without LaTeX; there, it must hold LaTeX in
   dollars or the like.
6. Marks around an answer are taken off: `\boxed{204.}`, `\boxed{**204**}`, `\boxed{204\\}`, `\boxed{\boldsymbol{204}}`.
7. A space may set a number's thousands apart: `12\,345`, `12 345`. There, that is the sum of two numbers. Other numbers side
   by side, `1 2 3`, are text and no product.
8. Digits of all scripts count (full-width, Arabic-Indic), and so do full-width punctuation and the degree sign.
9. Arguments of one digit need no braces: `\frac12`, `\sqrt3`.
10. An answer of more than 10,000 characters is wrong, and not parsed.
11. A solution may be LaTeX without dollars, a word, or a short sentence: `2\sqrt{3}`, `(3, \pi)`, `\text{Evelyn}`, `yes`.
   There, only a number in it is read, here the 2, or nothing, and then the problem does not count. A sentence with a number
   or with LaTeX in dollars is read as there.
12. Words and runs of letters are text, and no products: `listen` is not `silent`, `ACB` is not `ABC`. The letter of an
   option may have its text or a reason with it, `(B) 4`, but no other option. `A, B, D` is the set of options `ABD`.
   Chemical formulas are text as well: `H₂O` and `\ce{H2O}` are `H2O`, but `NO2` is not `N2O`.
13. Exact expressions are equal if they are, without a tolerance. A decimal that is not exact needs 6 significant
   digits, all of them right. A letter's case counts in mathematics, and `I` is not `i`. `1/0` is no number and equals
   nothing but itself. Numbers too large to work out are equal as text only.
14. `3:30` is a time and not 1/10; the base of `1011_2` counts; `1 1/4` in plain text is a mixed number.
   Dates, telephone numbers, addresses and versions (`2024-03-05`, `555-1234`, `1.2.3`) are text, and so are numbers with
   words between them: `5 out of 8`, `3 R 2`.
15. Unicode, plain text and dialects of LaTeX are read: `√2`, `½`, `sqrt(3)/2`, `\varnothing`, `\lg`, `\mathrm{i}`,
   `\sin 30^\circ`, `0.\overline{3}`, `1e-07`, `0{,}5`.
16. An inequality and its interval are the same, both ways; so are `x = 5`, `5 = x` and 5. In a chain of equations all
   numbers must agree: `5 = 7` is not 7. `2x = 6` is not 6, nor is 3 a solution `x + y = 3`.
17. Units that are known must agree where both are given; other words are left
   out, unless both have some that differ: `5 km north` is 5 km, and not `5 km south`. Two percentages are compared as such.
"""

import ast
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from .equality.notation import trim as _trim
from .patterns import answer_regex
from .verifier import MathVerifier, Verdict, default_verifier


THINKING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
_MAX_ANSWER = 10_000  # characters
_MAX_SHOWN = 1_000
_WINDOW = 32_000  # characters kept on each side of the start of the last box

# Everything that determines where a box ends. Repetitions are bounded, so a scan is linear
_TOKEN = re.compile(
    r"(?P<box>\\{1,2}(?:boxed|fbox|framebox)(?![A-Za-z])(?:\s*\[[^\[\]{}]{0,40}\]){0,2})"
    r"\s*(?:(?P<brace>\{)|(?P<integer>[+-]?\d+(?![.,]\d)(?![^\s$.,)\\])))?"
    r"|\\[,;:! ]|(?P<escape>\\.)|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
_BOXES = (r"\boxed", r"\fbox", r"\framebox")
_ANSWER_LINE = re.compile(r"[\s>*_#`-]*(?:the\s)?(?:final\s)?answer[*_`]*\s*[:\uff1a](.*)", re.IGNORECASE | re.DOTALL)
# A heading whose answer is on a line below
_HEADING = re.compile(
    r"\s*(?:#{1,6}|[*_]{2,3})?\s*(?:the\s)?(?:final\s)?answer[*_`]*\s*[:\uff1a]?[*_`]*\s*", re.IGNORECASE
)
_DISPLAY = (r"\[", "$$")
_ANSWER = re.compile("answer", re.IGNORECASE)

_WRAPPED = re.compile(
    r"(?:\\(?:text(?:bf|it|rm|normal)?|math(?:bf|it|rm|sf|bb)|boldsymbol|bm|mbox|underline)\s*)?\{([^{}]*)\}"
)
_INTEGER = re.compile(r"([+-]?)\s*([0-9]+|[1-9][0-9]{0,2}(?:(?:,|\{,\}|,\\!|\\[,;:! ]|~)[0-9]{3})+)")
# For solutions: delimiters of math that math-verify finds itself, and parts that are not words of a sentence
_DELIMITER = re.compile(r"(?<!\\)(?:\$|\\[(\[])|\\boxed(?![A-Za-z])")
_NO_WORDS = re.compile(r"\\(?:text\w*|math\w+|mbox)\s*\{[^{}]*\}|\\(?:[A-Za-z]+|.)| ?[-+*/^=<>|_&,;] ?")
_WORD = re.compile(r"(?<![^\s(])(?!(?:and|or)\b)[^\W\d_]{2,}(?=[\s.:!?)]|$)")
_EQUATION = re.compile(r"Eq\(\w+, (.*)\)", re.DOTALL)


@dataclass(frozen=True)
class Judgement:
    r"""Verdict on one completion.

    Args:
        correct: `None` if the solution cannot be parsed or verified against.
        answer: The answer as the model wrote it (at most 1,000 characters). `None` if there is none.
        vote: Key for a majority vote: equal for equal answers. In one call of [`judge`], all correct answers to a
            solution have the solution's vote, which no other answer has. Other votes are the integer, the number, what
            math-verify parsed, or else the text; " (unverified)" is appended to the text if verification failed. `None`
            without an answer.
        status: `empty` (only white space after the thinking), `unparsed` (text without an answer) or `judged`.
        reason: One sentence for a reader.
        outcome: The verifier's: `timed_out` or `crashed` if math-verify had to be stopped, else `ok`.
    """

    correct: bool | None
    answer: str | None
    vote: str | None
    status: Literal["judged", "unparsed", "empty"]
    reason: str
    outcome: Literal["ok", "timed_out", "crashed"] = "ok"


@dataclass(frozen=True)
class _Found:
    """Result of searching a completion: an answer, a text for math-verify to search (`text`), or the reason for none.

    `shown` is the answer as it appeared, with its box or line.
    """

    status: Literal["judged", "unparsed", "empty"]
    reason: str = ""
    answer: str | None = None
    shown: str = ""
    text: str | None = None


def judge(
    completions: Sequence[str],
    solutions: Sequence[str],
    verifier: MathVerifier | None = None,
    thinking_tags: Sequence[tuple[str, str]] = THINKING_TAGS,
    answer_pattern: str | None = None,
) -> list[Judgement]:
    """Judges completions. Never raises because of their content. Equal answers to a problem are verified once.

    Args:
        completions: (N,) texts. `None` counts as empty.
        solutions: (N,) solutions: integers, LaTeX with or without dollars, words, or sentences that contain a number or
            LaTeX in dollars.
        verifier: By default the [`default_verifier`].
        thinking_tags: Pairs of opening and closing tag.
        answer_pattern: Where the answer is stated, instead of in a box or on a line: a name or regular expression for
            [`answer_regex`]. The answer is its last nonempty match, or the box in that match.

    Raises:
        ValueError: The sequences differ in length, or the pattern is invalid.
        RuntimeError: The verifier's workers cannot be started.
    """
    pattern = None if answer_pattern is None else answer_regex(answer_pattern)
    solutions = [str(solution) for solution in solutions]
    integers = {solution: _integer(solution) for solution in set(solutions)}
    readable = {solution: _price(solution) or integer or _readable(solution) for solution, integer in integers.items()}
    found = [
        (_find("" if text is None else str(text), thinking_tags, pattern), solution)
        for text, solution in zip(completions, solutions, strict=True)
    ]
    requests = [_request(one, readable[solution], integers[solution]) for one, solution in found]
    asked = list(dict.fromkeys(request for request in requests if request is not None))
    verdicts = {}
    if asked:
        verifier = default_verifier() if verifier is None else verifier
        verdicts = dict(zip(asked, verifier.verify(*zip(*asked, strict=True), function="judged"), strict=True))
    by_solution = {}
    for (_, solution), request in zip(found, requests, strict=True):
        by_solution.setdefault(solution, []).extend([] if request is None else [verdicts[request]])
    rights = {
        solution: _right_vote(solution, of_it) if integers[solution] is None else _cut(integers[solution])
        for solution, of_it in by_solution.items()
    }
    return [
        _judgement(one, solution, integers[solution], rights[solution], verdicts.get(request))
        for (one, solution), request in zip(found, requests, strict=True)
    ]


def answer_part(text: str, thinking_tags: Sequence[tuple[str, str]] = THINKING_TAGS) -> str | None:
    """The text after the last closing tag, or all of it if there is none. `None` if a thinking section never ends."""
    end = max((text.rfind(close) + len(close) for _, close in thinking_tags if close in text), default=0)
    return None if any(text.find(start, end) >= 0 for start, _ in thinking_tags) else text[end:]


def _find(completion: str, thinking_tags: Sequence[tuple[str, str]], pattern: re.Pattern | None = None) -> _Found:
    text = answer_part(completion, thinking_tags)
    if text is None:
        return _Found("unparsed", "The thinking section never ends, so there is no answer.")
    if not text.strip():
        thought = len(text) < len(completion)
        return _Found("empty", "There is no text after the thinking." if thought else "There is no text.")
    if pattern is not None:
        return _matched(text, pattern)
    answer, rest = _last_box(text)
    if answer is not None:
        return _last_line(rest, bold=True) or _Found("judged", answer=answer, shown=rf"\boxed{{{_short(answer)}}}")
    found = _last_line(rest)
    if found is not None:
        return found
    boxes = "Its boxes are empty or not closed" if _BOX.search(text) else r"There is no \boxed{...}"
    reason = f'{boxes}, and no line "Answer: ...".'
    return _Found("unparsed", reason, text=rest if _ANSWER.search(rest) else None)


def _matched(text: str, pattern: re.Pattern) -> _Found:
    """Returns the last nonempty match of the pattern, or the box in it."""
    match = next((match for match in reversed(pattern.findall(text)) if match.strip()), None)
    if match is None:
        return _Found("unparsed", "Nothing in the text matches `answer_pattern`.")
    answer = _last_box(match)[0] or match.strip()
    return _Found("judged", answer=answer, shown=f"By `answer_pattern`: {_short(answer)}")


def _last_line(text: str, bold: bool = False) -> _Found | None:
    """The last line `Answer: ...` (with `bold`: in bold), or the line below the last heading `**Final Answer**`."""
    lines = text.splitlines()
    below = None  # nonempty lines below: the first and the second
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number]
        match = _ANSWER_LINE.match(line)
        answer = match and match[1].strip().strip("*_` ")
        if answer and (not bold or line.lstrip().startswith(("**", "__"))):
            return _line(answer, line)
        if not bold and below is not None and _HEADING.fullmatch(line[:100]) and len(line) <= 100:
            if below[0].strip() in _DISPLAY and below[1] is not None:
                below = (below[1], None)
            answer = below[0].strip().strip("*_` ")
            if answer:
                return _line(answer, f"Answer: {below[0]}")
        if line.strip():
            below = (line, below[0] if below is not None else None)
    return None


def _line(answer: str, line: str) -> _Found:
    trimmed = _trim(answer[:_MAX_ANSWER])
    # In a sentence with a formula, math-verify finds the formula
    sentence = "$" in trimmed.replace(r"\$", "") or r"\(" in trimmed
    return _Found("judged", answer=answer, shown=f"Answer: {_short(answer)}", text=line if sentence else None)


def _last_box(text: str) -> tuple[str | None, str]:
    """Returns the content of the box that counts and the lines below it. Without such a box, returns `None` and the
    text without the boxes that do not count; an unclosed one is removed up to the end of its line.

    Only a window around the start of the last box is parsed, which bounds the time."""
    first = _BOX.search(text)
    if first is None:
        return None, text
    last = max(text.rfind(box) for box in _BOXES)
    if last - first.start() > _WINDOW:
        first = _BOX.search(text, last - _WINDOW)
    if len(text) - last > _WINDOW:
        answer, rest = _last_box(text[: last + _WINDOW])
        return answer, rest + text[last + _WINDOW :]
    best = (-1, 0, 0)  # start of the box, start and end of its content
    empty = []
    frames = []  # open braces: [start of the box or -1, start of the content, content is nonempty]
    end = max(0, first.start() - 1)  # end of the previous token
    for token in _TOKEN.finditer(text, end):
        if frames and not frames[-1][2] and text[end : token.start()].strip():
            frames[-1][2] = True
        end = token.end()
        kind = token.lastgroup
        if kind in ("brace", "open"):
            frames.append([token.start() if kind == "brace" else -1, end, False])
        elif kind == "close" and frames:
            start, content, filled = frames.pop()
            if filled and start > best[0]:
                best = start, content, token.start()
            if not filled and start >= 0:
                empty.append((start, end))
            if filled and frames:
                frames[-1][2] = True
        elif kind == "integer":
            best = (token.start(), *token.span("integer"))  # no other box starts after this one
        if kind in ("integer", "escape") and frames:
            frames[-1][2] = True
    start, content, end = best
    if start >= 0:
        # Boxes within the content are empty
        return _without(
            text[content:end], [(a - content, b - content) for a, b in empty if content <= a < end]
        ).strip(), text[text.find("\n", end) if "\n" in text[end:] else len(text) :]
    return None, _without(text, empty + [(frame[0], -1) for frame in frames if frame[0] >= 0])


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """The text without some spans, which may be nested. An end of -1 means the end of the line."""
    parts, position = [], 0
    for start, end in sorted(spans):
        if start < position:
            continue
        parts.append(text[position:start])
        if end < 0:
            end = text.find("\n", start)
        position = end if end >= 0 else len(text)
    return "".join([*parts, text[position:]])


def _integer(answer: str) -> str | None:
    """Canonical form of an integer. `None` for anything else."""
    if len(answer) > _MAX_ANSWER:
        return None
    answer = _trim(answer)
    if wrapped := _WRAPPED.fullmatch(answer):
        answer = _trim(wrapped[1])
    match = _INTEGER.fullmatch(answer)
    if match is None:
        return None
    digits = re.sub("[^0-9]", "", match[2]).lstrip("0")
    return ("-" if match[1] == "-" else "") + digits if digits else "0"


def _price(solution: str) -> str | None:
    r"""Boxes a solution in dollars, `\$5`, whose sign [`_trim`] would remove. `None` for anything else."""
    solution = " ".join(solution.split())
    price = _trim(solution, currency=True)
    if _DELIMITER.search(solution) and _integer(solution) is None:
        return None  # left as it is, for math-verify
    return rf"\boxed{{{price}}}" if price != _trim(solution) and len(_WORD.findall(price)) < 3 else None


def _readable(solution: str) -> str:
    """Puts a solution in a box for math-verify, unless it has delimiters or is a sentence (three words or more)."""
    bare = _trim(" ".join(solution.split()))
    if not bare or _DELIMITER.search(solution) or len(_WORD.findall(_NO_WORDS.sub("+", bare))) >= 3:
        return solution
    return rf"\boxed{{{bare}}}"


def _request(found: _Found, solution: str, integer: str | None) -> tuple[str, str] | None:
    """The text and solution to send to the verifier. `None` if there is nothing to verify."""
    if found.text is not None:
        return found.text, solution
    if found.answer is not None and len(found.answer) <= _MAX_ANSWER:
        if integer is not None and _integer(found.answer) is not None:
            return None
        return rf"\boxed{{{_trim(found.answer, currency=True)}}}", solution
    # Without an answer, only the solution matters: if it cannot be parsed, the problem does not count
    return None if integer is not None else ("", solution)


def _right_vote(solution: str, verdicts: Sequence[Verdict]) -> str:
    """The vote of correct answers to a solution that is not an integer, from the verdicts on all its answers.

    Not every verdict has the parsed solution, and an answer's vote must not depend on its own verdict."""
    golds = (_expression(verdict.gold_parsed) for verdict in verdicts)
    gold = next((gold for gold in golds if gold is not None), None)
    return _cut(_number(gold[0]) if gold is not None and gold[0] else solution.strip())


def _judgement(found: _Found, solution: str, integer: str | None, right: str, verdict: Verdict | None) -> Judgement:
    """Builds the judgement. `right` is the vote of correct answers; `integer` is the solution if it is an integer."""
    status, answer, outcome = found.status, found.answer, "ok" if verdict is None else verdict.outcome
    parsed = None if verdict is None else _expression(verdict.answer_parsed)
    if found.text is not None and answer is None and parsed is not None:
        status, answer = "judged", parsed[1] or parsed[0]
    correct = _correct(answer, integer, verdict)
    vote = None if answer is None else _vote(answer, parsed, correct, outcome, right)
    if correct is None:
        why = "cannot be parsed" if outcome == "ok" else f"cannot be verified against ({outcome.replace('_', ' ')})"
        reason = f"The solution {_short(solution)!r} {why}."
    elif outcome != "ok":
        reason = f"verification {outcome.replace('_', ' ')}: {'' if correct else 'not '}correct"
    elif answer is None:
        reason = found.reason
    elif len(answer) > _MAX_ANSWER:
        reason = f"The answer has {len(answer):,} characters: not parsed, not correct."
    elif verdict is None:
        reason = f"{found.shown} is the integer {_short(_integer(answer))}" + ("." if correct else f", not {integer}.")
    elif not correct and (parsed is None or not parsed[0]):
        reason = f"{found.shown} is not {_short(solution)}."
    else:
        gold = _text_of(_expression(verdict.gold_parsed), solution)
        relation = "equals" if correct else "does not equal"
        given = _text_of(parsed, answer)
        if not correct and given == gold:
            # The parsed forms hide the difference (a unit or an order): show the originals
            given, gold = answer, solution
        reason = f"{_short(given)} {relation} {_short(gold)}."
    return Judgement(correct, None if answer is None else answer[:_MAX_SHOWN], vote, status, reason, outcome)


def _correct(answer: str | None, integer: str | None, verdict: Verdict | None) -> bool | None:
    """Whether the answer is right. `None` if the solution cannot be parsed or verified against."""
    if verdict is not None and verdict.reward is None:
        return None
    if answer is None or len(answer) > _MAX_ANSWER:
        return False
    return _integer(answer) == integer if verdict is None else verdict.reward == 1.0


def _vote(answer: str, parsed: tuple[str, str] | None, correct: bool | None, outcome: str, right: str) -> str:
    """The answer's vote. `right` is given to correct answers only."""
    if correct:
        return right
    text = " ".join(answer.split())
    if correct is False and outcome != "ok":
        vote = text + " (unverified)"
    else:
        vote = _integer(answer) or (_number(parsed[0]) if parsed is not None and parsed[0] else text)
    vote = _cut(vote)
    return vote + " (wrong)" if correct is False and vote == right else vote


def _cut(vote: str) -> str:
    """Shortens a long vote to its beginning and a hash."""
    if len(vote) <= _MAX_SHOWN:
        return vote
    return vote[:100] + "... " + hashlib.sha256(vote.encode("utf-8", "surrogatepass")).hexdigest()


def _expression(parsed: str) -> tuple[str, str] | None:
    """Splits `[expression, 'text']` or `['text']`, as TRL logs math-verify's result, into expression (or "") and text.

    `None` if nothing was parsed.
    """
    if parsed in ("[unparseable]", "[skipped]", "[timed_out]", "[crashed]"):
        return None
    inner = parsed.removeprefix("[").removesuffix("]")
    if inner.startswith(("'", '"')):
        expression, text = "", inner
    else:
        expression, _, text = inner.partition(", '") if ", '" in inner else inner.partition(', "')
        text = inner[len(expression) + 2 :]
    try:
        return expression, ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the text was cut off
        return expression, text


def _number(expression: str) -> str:
    """One form per number: 204.000 and x = 204 become 204, 0.5 becomes 1/2."""
    match = _EQUATION.fullmatch(expression)
    value = match[1] if match else expression
    if len(value) <= 40 and "e" not in value.lower():
        try:
            return str(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            pass
    return value


def _text_of(parsed: tuple[str, str] | None, text: str) -> str:
    return text if parsed is None else parsed[0] or parsed[1]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."
