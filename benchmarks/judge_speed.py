r"""Measures how many ordinary answers per minute the judge of `trl-credit eval` judges.

    OMP_NUM_THREADS=1 python benchmarks/judge_speed.py [--answers N] [--workers N] [--expressions F] [--words N]

Each answer is a text of a few hundred words with formulas, half of them after a thinking section. It ends with its box,
or in one of ten with a line `Answer: ...`. Solutions are integers from 0 to 999. A share of the answers
(`--expressions`, by default a tenth) are fractions, surds, sums, products, equations and numbers with units, which
math-verify must parse. The others are integers. All expressions in a run are different, so each must be verified.
Prints answers per minute for all, for the integers alone (compared in this process) and for the expressions alone (in
worker processes), not counting the start of the workers.
"""

import argparse
import random
import time

from trl_credit.rewards.judge import judge
from trl_credit.rewards.verifier import MathVerifier


TEXT = (
    r"so we have that the number of such triples is therefore and $x_1 + 2y = 5$ let \(n\) be by symmetry \frac{a}{b}"
)
WORDS = TEXT.split()


def expression(i: int) -> str:
    """The i-th expression. All are different."""
    n = i // 6 + 2
    return [
        rf"\frac{{{n}}}{{{n + 1}}}",
        rf"{n}\sqrt{{2}}",
        rf"{n} + {n % 7}\pi",
        rf"2^{{{n % 50}}} \cdot {n}",
        rf"x = {n}",
        rf"{n} \text{{ cm}}",
    ][i % 6]


def texts(integers: int, expressions: int, words: int, seed: int = 0) -> list[str]:
    """(integers + expressions,) shuffled completions."""
    rng = random.Random(seed)
    answers = [str(rng.randrange(1000)) for _ in range(integers)] + [expression(i) for i in range(expressions)]
    rng.shuffle(answers)
    completions = []
    for i, answer in enumerate(answers):
        body = " ".join(rng.choices(WORDS, k=rng.randint(words // 2, 3 * words // 2)))
        body = f"<think>\n{body}\n</think>\n{body[:500]}" if i % 2 else body
        ending = f"\n\nAnswer: ${answer}$" if i % 10 == 0 else rf" The answer is $\boxed{{{answer}}}$."
        completions.append(body + ending)
    return completions


def rate(completions: list[str], verifier: MathVerifier) -> float:
    """Measures completions per minute."""
    rng = random.Random(1)
    solutions = [str(rng.randrange(1000)) for _ in completions]
    start = time.perf_counter()
    judge(completions, solutions, verifier)
    return 60 * len(completions) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--expressions", type=float, default=0.1, help="share of the answers that math-verify must parse"
    )
    parser.add_argument("--words", type=int, default=300, help="mean length of a text")
    args = parser.parse_args()
    expressions = int(args.answers * args.expressions)
    with MathVerifier(workers=args.workers) as verifier:
        verifier.verify([rf"\boxed{{{i}}}" for i in range(20 * args.workers)], ["1"] * 20 * args.workers)  # starts them
        for name, mix in (
            ("all", (args.answers - expressions, expressions)),
            ("integers", (args.answers - expressions, 0)),
            ("expressions", (0, expressions)),
        ):
            completions = texts(*mix, args.words)
            print(f"{name:>11}  {len(completions):6} answers  {rate(completions, verifier):9,.0f} a minute", flush=True)


if __name__ == "__main__":
    main()
