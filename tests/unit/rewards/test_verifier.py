"""Math verification in worker processes: same verdicts as TRL, and no answer can harm the training process."""

import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
from datasets import Dataset
from trl.rewards import accuracy_reward, get_cosine_scaled_reward, reasoning_accuracy_reward
from trl.trainer.utils import get_callable_name

from trl_credit.data import report_unparsable
from trl_credit.rewards import REWARDS, accuracy, build_reward, judged, reasoning_accuracy, required_columns, verifier
from trl_credit.rewards.verifier import MathVerifier, Verdict, _worker_environment


# Solutions of every kind with answers that mean the same and answers that do not; which are judged correct is
# math-verify's affair: the pool must say the same as math-verify called directly
KINDS = {
    "integers": [("42", ["42", "42.0", "042", "40+2", "+42"], ["43", "-42", "4 2", "420"])],
    "negative": [("-7", ["-7", "(-7)", "-7.0", "- 7"], ["7", "--7", "-70"])],
    "thousands": [("12345", ["12,345", "12345", "12 345", r"12{,}345", r"12\,345"], ["12.345", "12,34,5"])],
    "decimals": [("0.125", ["0.125", ".125", "0.1250", r"\frac18", "1/8"], ["0.124", "0.0125", "1.25"])],
    "rounded": [("3.1416", ["3.1416", r"\pi", "3.14"], ["3.15", "22/7"])],
    "repeating": [(r"0.\overline{3}", [r"\frac{1}{3}", "0.3333333", r"0.\overline{3}"], ["0.3", "0.33"])],
    "percent": [("25%", [r"25\%", "25%", "0.25", r"\frac{1}{4}"], ["2.5%", "75"]), ("0.5", [r"50\%"], ["5%"])],
    "fractions": [(r"\frac{3}{4}", ["3/4", "0.75", r"\dfrac34", r"\tfrac{6}{8}", r"\frac{-3}{-4}"], ["4/3"])],
    "mixed numbers": [(r"\frac{7}{2}", [r"3\frac{1}{2}", r"3 \frac12", "3.5"], [r"3\cdot\frac12", r"2\frac12"])],
    "radicals": [
        (r"2\sqrt{3}", [r"2\sqrt{3}", r"\sqrt{12}", r"2 \cdot 3^{1/2}", r"\frac{6}{\sqrt{3}}"], [r"3\sqrt{2}", "3.46"]),
        (r"\sqrt[3]{16}", [r"2\sqrt[3]{2}", "16^{1/3}"], [r"\sqrt{16}", "4"]),
    ],
    "powers": [("2^{10}", ["1024", "2^{10}", "4^5", "32^2"], ["2^{11}", "20"])],
    "scientific": [(r"3 \times 10^{8}", ["300000000", r"3\cdot10^8", "3e8", "3*10^8"], [r"3\times10^{7}", "38"])],
    "pi": [(r"\frac{\pi}{2}", [r"\frac{\pi}{2}", r"0.5\pi", r"\pi/2", "π/2"], ["90", r"\pi", "1.57"])],
    "logarithms": [(r"\ln 2", [r"\ln 2", r"\log 2", r"\ln{2}", r"\frac{\ln 4}{2}"], [r"\log_{10} 2", "0.69"])],
    "trigonometry": [(r"\sin(\frac{\pi}{6})", ["0.5", r"\cos(\pi/3)", r"\frac{1}{2}"], [r"\sin(30)", "0.6"])],
    "intervals": [("(1,2]", ["(1,2]", r"\left(1,2\right]", "(1, 2 ]"], ["[1,2]", "(1,2)", "(2,1]"])],
    "unbounded": [(r"(-\infty, 3)", [r"(-\infty,3)", "x<3"], [r"(-\infty,3]", "x>3"])],
    "unions": [(r"[0,1] \cup [2,3]", [r"[2,3]\cup[0,1]", r"[0,1]\cup[2,3]"], ["[0,3]", r"[0,1]\cap[2,3]"])],
    "sets": [(r"\{1,2,3\}", [r"\{3,2,1\}", "1,2,3", r"\left\{1,2,3\right\}"], [r"\{1,2\}", "(1,2,3)", r"\{1,2,4\}"])],
    "tuples": [("(3, -4)", ["(3,-4)", r"\left(3,-4\right)", "3,-4"], ["(-4,3)", "(3,4)", "[3,-4]"])],
    "lists": [("1, 2, 3", ["1,2,3", "1, 2 and 3", "3, 2, 1"], ["1,2", "6"])],
    "matrices": [
        (
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
            [r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"],
            [r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", "1,2,3,4"],
        )
    ],
    "equations": [("x=5", ["x=5", "5", "5=x", "x = 10/2"], ["x=6", "y=5"]), ("y=2x+1", ["2x+1", "y-2x=1"], ["y=2x"])],
    "inequalities": [(r"x \geq 2", [r"x\ge2", r"2\leq x", r"[2,\infty)"], ["x>2", r"x\leq2"])],
    "chains": [("1<x<2", ["1<x<2", "(1,2)", "2>x>1"], ["1<x", "[1,2]"])],
    "plus minus": [(r"\pm 3", [r"\pm3", "3,-3", "-3, 3"], ["3", "-3"])],
    "units": [("12", [r"12\text{ cm}", r"12\,\mathrm{kg}", "12 cm", r"12 \text{ cm}^2"], [r"13\text{ cm}"])],
    "degrees": [("90", [r"90^\circ", r"90^{\circ}", "90°", r"90\text{ degrees}"], [r"91^\circ", r"\frac{\pi}{2}"])],
    "currency": [("18.90", [r"\$18.90", "18.9", "$18.90$", r"\text{\$}18.90"], [r"\$18.09", "1890"])],
    "text": [(r"\text{even}", [r"\text{even}", "even", r"\textbf{even}"], [r"\text{odd}", r"\text{Even}"])],
    "choices": [("B", ["B", r"\text{B}", "(B)", r"\textbf{(B)}"], ["A", "b", "C"])],
    "complex": [("3+4i", ["3+4i", "4i+3", "3+4*i", r"(2+i)^2"], ["3-4i", "7i", "5"])],
    "symbols": [
        ("x^2+2x+1", ["x^2+2x+1", "(x+1)^2", "1+2x+x^2", "x(x+2)+1"], ["x^2+2x", "(x-1)^2", "y^2+2y+1"]),
        (r"\frac{a}{b}", ["a/b", r"a b^{-1}", r"\frac{2a}{2b}"], ["b/a", "ab"]),
    ],
    "functions": [("f(x)=x^2", ["f(x)=x^2", "x^2"], ["f(x)=x", "g(x)=2x"])],
    "factorials": [("5!", ["120", "5!", r"5\cdot4!"], ["24", "6!"])],
    "binomials": [(r"\binom{5}{2}", ["10", r"\binom{5}{3}", r"\dbinom52"], ["20", r"\binom{5}{1}"])],
    "sums": [(r"\sum_{k=1}^{4} k", ["10", r"\sum_{j=1}^{4} j"], ["9"]), (r"\int_0^1 x dx", [r"\frac12", "0.5"], ["1"])],
    "moduli": [("3", [r"10 \bmod 7", r"3 \pmod 7", r"x \equiv 3 \pmod{7}"], [r"4 \pmod 7"])],
    "ratios": [("2:3", ["2:3", r"\frac23", "2/3"], ["3:2", "2,3"])],
    "times": [("12:30", ["12:30", r"12:30\text{ PM}"], ["12:31"])],
    "infinity": [(r"\infty", [r"\infty", r"+\infty", "∞"], [r"-\infty", "1"])],
    "unicode": [("√2", [r"\sqrt{2}", "√2", "2^½"], ["2"]), ("½", ["0.5"], ["2"]), ("\u22125", ["-5", "\u22125"], ["5"])],
    "zero": [("0", ["0", "-0", "0.0", "1-1"], ["", "1", r"\emptyset"]), (r"\emptyset", [r"\emptyset", r"\{\}"], ["0"])],
    "large": [("10^{30}", ["1" + "0" * 30, "10^{30}"], ["10^{31}"]), ("1" * 40, ["1" * 40], ["1" * 39])],
    "bases": [("101_2", ["101_2", "5", r"101_{2}"], ["101", "110_2"])],
    "unparsable solutions": [("sorry", ["1", "sorry"], ["2"]), ("", ["", "1"], ["0"]), ("  \n", ["1"], ["0"])],
}  # fmt: skip

# Texts as a whole, with the solution
TEXTS = [
    (r"\boxed{\boxed{5}}", "5"), (r"\boxed{3} or rather \boxed{5}", "5"), (r"\boxed{5} or rather \boxed{3}", "5"),
    (r"\boxed{5", "5"), (r"\boxed{\frac{1}{2}", r"\frac{1}{2}"), (r"\boxed", "5"), (r"\boxed{}", "5"), ("", "5"),
    ("   \n\t", "5"), ("5", "5"), ("The answer is 5.", "5"), ("The answer is $5$.", "5"), ("$$x = 5$$", "5"),
    (r"\[ 5 \]", "5"), (r"\( 5 \)", "5"), ("$5", "5"), ("####5", "5"), (r"\frac{1}{", "5"), (r"$\frac{1}{$", "5"),
    (r"\boxed{5}" * 20, "5"), (r"\fbox{5}", "5"), (r"\boxed 5", "5"), (r"\boxed{\text{five}}", "5"),
    ("答案是 \\boxed{5}。", "5"), ("\\boxed{\uff15}", "5"), ("\\boxed{5}\x00", "5"), ("\ud83d \\boxed{5}", "5"),
    (r"\boxed{5\\6}", "5"), (r"\boxed{5}}}}}", "5"), (r"{{{{\boxed{5}", "5"), (r"\left( \boxed{5}", "5"),
    ("<think>\\boxed{4}</think>\\boxed{5}", "5"), ("\\boxed{1,\n2}", "(1,2)"), (r"\boxed{%5}", "5"),
    (r"\boxed{1/0}", "5"), (r"\boxed{\frac{1}{0}}", r"\frac{1}{0}"), (r"\boxed{0^0}", "1"), (r"\boxed{x_1=1,x_2=2}", "1,2"),
]  # fmt: skip

ANSWERS = [
    (text, solution)
    for kinds in KINDS.values()
    for raw, right, wrong in kinds
    for solution in (raw, f"${raw}$")
    for text in (rf"It follows that $\boxed{{{answer}}}$." for answer in right + wrong)
] + TEXTS

# With a solution each
HOSTILE = {
    "tower": (r"\boxed{9^{9^{9^{9}}}}", "7"),
    "power": (r"\boxed{7^{10^{10}}}", "7"),
    "power modulo": (r"\boxed{12345678901^{12345678901} \bmod 97}", "1"),
    "factorial": (r"\boxed{1000000000!}", "7"),
    "factorial of a factorial": (r"\boxed{(100000000!)!}", "7"),
    "binomial": (r"\boxed{\binom{10000000000}{5000000000}}", "7"),
    "sum": (r"\boxed{\sum_{n=1}^{100000000} \frac{1}{n}}", "7"),
    "nested parentheses": (r"\boxed{" + "(" * 5000 + "1" + ")" * 5000 + "}", "7"),
    "nested braces": (r"\boxed{" + "{" * 5000 + "1" + "}" * 5000 + "}", "7"),
    "nested fractions": (r"\boxed{" + r"\frac{1}{1+" * 2000 + "1" + "}" * 2000 + "}", "7"),
    "nested radicals": (r"\boxed{" + r"\sqrt{" * 2000 + "2" + "}" * 2000 + "}", "7"),
    "nested boxes": (r"\boxed{" * 5000 + "1" + "}" * 5000, "7"),
    "1 MB of terms": (r"\boxed{" + "1+" * 500_000 + "1}", "7"),
    "1 MB of digits": (r"\boxed{" + "1" * 1_000_000 + "}", "7"),
    "1 MB of boxes": (r"\boxed{1} " * 100_000, "7"),
    "1 MB of dollars": ("$" * 1_000_000, "7"),
    "1 MB of backslashes": ("\\" * 1_000_000, "7"),
    "1 MB of a matrix": (r"\boxed{\begin{pmatrix}" + "1&" * 500_000 + r"1\end{pmatrix}}", "7"),
}


def direct(text, solution):
    """TRL's verdict in this process's main thread, or the name of the exception."""
    try:
        return accuracy_reward([[{"role": "assistant", "content": text}]], [solution])[0]
    except Exception as error:
        return type(error).__name__


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pool():
    with MathVerifier(workers=2) as pool:
        yield pool


# What a worker does with the texts below instead of verification
STUB = """
    import os, signal, sys, time
    sys.path.insert(0, {folder!r})
    import _worker

    def reward(completions, solution, log_extra, **kwargs):
        for text in (completions[0][0]["content"], solution[0]):
            command, _, argument = text.partition(" ")
            if command == "hang":
                time.sleep(10_000)
            if command == "loop":
                10**10**9  # one instruction, which no signal handler interrupts
            if command == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if command == "once" and not os.path.exists(argument):
                open(argument, "w").write(str(os.getpid()))
                time.sleep(10_000)
            if command == "allocate":
                bytearray(int(argument))
            if command == "swell":
                globals()["kept"] = bytearray(int(argument))
            if command == "raise":
                raise ValueError("Exceeds the limit (4300 digits) for integer string conversion")
            if command == "print":
                print("noise"), os.write(1, b"noise"), os.write(2, b"noise" * 100_000)
        log_extra("gold_parsed", [str(os.getpid())])
        log_extra("answer_parsed", [completions[0][0]["content"]])
        return [1.0 if completions[0][0]["content"] else 0.0]

    _worker.FACTORIES["accuracy"] = lambda: reward
    {start}
    _worker.main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Makes verifiers whose workers do as they are told."""
    made = []

    def make(start="", **kwargs):
        script = tmp_path / "stub.py"
        folder = str(Path(verifier.__file__).parent)
        script.write_text(textwrap.dedent(STUB).format(folder=folder, start=start))
        monkeypatch.setattr(verifier, "_SCRIPT", str(script))
        made.append(MathVerifier(**({"workers": 1, "time_limit": 60.0} | kwargs)))
        return made[-1]

    yield make
    for one in made:
        one.close()


# Verdicts


@pytest.mark.slow
def test_verdicts_are_those_of_math_verify(pool):
    expected = [direct(*answer) for answer in ANSWERS]
    verdicts = pool.verify(*zip(*ANSWERS, strict=True))
    differing = [
        (*answer, verdict, want)
        for answer, verdict, want in zip(ANSWERS, verdicts, expected, strict=True)
        if verdict.reward != want or verdict.outcome != "ok"
    ]
    assert not differing
    assert len(set(ANSWERS)) >= 300
    assert min(expected.count(1.0), expected.count(0.0)) >= 100  # the set tells right from wrong
    assert expected.count(None) >= 5


def test_rewards_are_trls(pool, monkeypatch):
    """All three, with their columns; and the formula of the cosine."""
    monkeypatch.setattr("trl_credit.rewards.several.default_verifier", lambda: pool)
    texts = [
        r"\boxed{7}",
        r"\boxed{8}",
        "",
        r"</think>\boxed{7}",
        r"\boxed{7}</think>\boxed{8}",
        r"\boxed{8}</END>\boxed{7}",
    ]
    solutions = ["7", "7", "7", "$7$", "sorry", "7"]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [[1] * n for n in (0, 3, 50, 99, 100, 300)]

    def run(function, completions, **kwargs):
        columns = {}
        rewards = function(completions, solutions, completion_ids=ids, log_extra=columns.__setitem__, **kwargs)
        return rewards, columns

    values = {"max_len": 100, "min_value_wrong": -2.0, "max_value_correct": 3.0}
    for ours, theirs, kwargs in (
        (accuracy, accuracy_reward, {}),
        (reasoning_accuracy, reasoning_accuracy_reward, {}),
        (reasoning_accuracy, reasoning_accuracy_reward, {"reasoning_delimiters": ["</END>", "</think>"]}),
        (build_reward({"name": "cosine_scaled", "max_len": 100}), get_cosine_scaled_reward(100), {}),
        (build_reward({"name": "cosine_scaled", **values}), get_cosine_scaled_reward(**values), {}),
    ):
        want = run(theirs, chats, **kwargs)
        assert run(ours, chats, **kwargs) == want
        assert run(ours, texts, **kwargs) == want  # plain text
        assert len(set(want[0])) > 2
    turns = [
        [{"role": "assistant", "content": r"\boxed{1}"}, {"role": "tool", "content": "1"}, *chat] for chat in chats
    ]
    assert run(reasoning_accuracy, turns) == run(reasoning_accuracy_reward, chats)


def test_rewards_have_trls_names_and_can_be_pickled():
    for name, trls in (
        ("accuracy", "accuracy"),
        ("reasoning_accuracy", "reasoning_accuracy_reward"),
        ({"name": "cosine_scaled", "max_len": 10}, "cosine_scaled_reward"),
    ):
        reward = build_reward(name)
        assert get_callable_name(reward) == trls
        assert get_callable_name(pickle.loads(pickle.dumps(reward))) == trls
        assert required_columns(reward) == ["solution"]
    assert set(REWARDS) == {"accuracy", "judged", "reasoning_accuracy", "think_format"}


def test_nothing_is_verified_in_this_process(pool, monkeypatch):
    monkeypatch.setattr("trl_credit.rewards.several.default_verifier", lambda: pool)
    monkeypatch.setattr(sys.modules["trl_credit.rewards.judge"], "default_verifier", lambda: pool)
    for function in ("math_verify.parse", "math_verify.verify", "math_verify.parser.parse_latex_cached"):
        monkeypatch.setattr(function, lambda *args, **kwargs: pytest.fail("in the training process"))
    for function in ("parse", "verify"):
        monkeypatch.setattr(f"trl.rewards.accuracy_rewards.{function}", lambda *args, **kwargs: pytest.fail("here"))
    assert accuracy([r"\boxed{7}"], ["7"]) == [1.0]
    assert judged([r"\boxed{\frac{1}{2}}"], ["0.5"]) == [1.0]
    assert reasoning_accuracy([r"</think>\boxed{7}"], ["7"]) == [1.0]
    assert build_reward("cosine_scaled", 10)([r"\boxed{7}"], ["7"], completion_ids=[[]]) == [1.0]
    assert report_unparsable(Dataset.from_dict({"solution": ["1", "sorry"]}), accuracy) == 1


def test_other_lengths_are_errors(pool):
    with pytest.raises(ValueError, match="zip"):
        pool.verify(["1", "2"], ["1"])
    with pytest.raises(ValueError, match="zip"):
        pool.verify(["1"], ["1"], function="cosine_scaled", max_len=3, lengths=[1, 2])
    assert pool.verify([], []) == []


@pytest.mark.parametrize("name", ["workers", "time_limit", "memory_limit_gib", "max_tasks"])
def test_arguments_must_be_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` must be positive, got 0"):
        MathVerifier(**{name: 0})


def test_number_of_workers(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    for processes, workers in ((None, 4), ("1", 4), ("5", 3), ("8", 2), ("16", 1), ("64", 1)):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if processes:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert MathVerifier().workers == workers


# Hostile answers


@pytest.mark.slow
def test_hostile_answers():
    """None is correct, and the pool goes on."""
    with MathVerifier(workers=2, time_limit=2.0) as pool:
        verdicts = dict(zip(HOSTILE, pool.verify(*zip(*HOSTILE.values(), strict=True)), strict=True))
        assert {name for name, verdict in verdicts.items() if verdict.reward != 0.0} == set()
        for name in ("tower", "factorial", "sum", "nested parentheses", "1 MB of terms", "1 MB of boxes"):
            assert verdicts[name].outcome == "timed_out", name
            assert verdicts[name].answer_parsed == "[timed_out]"
            assert verdicts[name].gold_parsed == "[7, '7']"
        assert pool.verify([r"\boxed{7}"] * 4, ["7", "8", "sorry", "7"]) == [
            Verdict(1.0, "[7, '7']", "[7, '7']"),
            Verdict(0.0, "[8, '8']", "[7, '7']"),
            Verdict(None, "[unparseable]", "[skipped]"),
            Verdict(1.0, "[7, '7']", "[7, '7']"),
        ]


@pytest.mark.slow
def test_hostile_answers_and_solutions_in_all_rewards():
    """A wrong answer's value where the answer is at fault; `None` where the solution is."""
    with MathVerifier(workers=1, time_limit=1.0) as pool:
        text, solution = HOSTILE["tower"]
        length = {"function": "cosine_scaled", "max_len": 10, "lengths": [10]}
        assert pool.verify(["</think>" + text], [solution], function="reasoning_accuracy")[0].reward == 0.0
        (verdict,) = pool.verify([text], [solution], **length)
        assert verdict == Verdict(-1.0 + 0.5, "[7, '7']", "[timed_out]", "timed_out")
        for kwargs in ({}, {"function": "reasoning_accuracy"}, length):
            for answer, solution in (
                ("1", "$" + "1+" * 500_000 + "1$"),
                (r"\boxed{9^{9^{9^{9}}}+1}", "$9^{9^{9^{9}}}$"),
            ):
                (verdict,) = pool.verify(["</think>" + answer], [solution], **kwargs)
                assert verdict == Verdict(None, "[timed_out]", "[skipped]", "timed_out")


@pytest.mark.slow
def test_math_verifys_own_guard():
    """Stops the comparison before the cap does; the texts still decide, as they do when it is called directly."""
    with MathVerifier(workers=1, time_limit=60.0) as pool:
        sums = [r"\sum_{n=1}^{100000000} \frac{1}{n}", r"\sum_{n=1}^{100000001} \frac{1}{n}"]
        pool.verify([""], ["1"])
        process = pool._workers[0].process
        assert [v.reward for v in pool.verify([rf"\boxed{{{s}}}" for s in sums], [f"${sums[0]}$"] * 2)] == [1.0, 0.0]
        assert process.returncode is not None  # an interrupted process is not used again
        assert pool.verify([rf"\boxed{{{sums[1]}}}"], ["7"])[0].outcome == "timed_out"


# Workers


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        ("hang", "timed_out"),
        ("loop", "timed_out"),
        ("die", "crashed"),
        ("raise", "crashed"),
        (f"allocate {1 << 31}", "crashed"),
    ],
)
@pytest.mark.slow
def test_failures(command, outcome, stub):
    """0.0 where the completion fails; not scored where the solution does, and then the solution is not tried again."""
    pool = stub(time_limit=1.0)
    before = pool.verify(["x"], ["y"])[0]
    (verdict,) = pool.verify([command], ["y"])
    assert (verdict.reward, verdict.answer_parsed, verdict.outcome) == (0.0, f"[{outcome}]", outcome)
    after = pool.verify(["x"], ["y"])[0]
    assert (after.reward, after.outcome) == (1.0, "ok")
    assert after.gold_parsed != before.gold_parsed  # another process
    (verdict,) = pool.verify(["x"], [command])
    assert verdict == Verdict(None, f"[{outcome}]", "[skipped]", outcome)
    idle = pool.verify(["x"], ["y"])[0].gold_parsed
    assert pool.verify(["z"], [command]) == [verdict]
    assert pool.verify(["x"], ["y"])[0].gold_parsed == idle  # no worker was lost on it


@pytest.mark.slow
def test_worker_killed_between_requests(stub):
    pool = stub()
    (first,) = pool.verify(["x"], ["y"])
    os.kill(int(first.gold_parsed), signal.SIGKILL)
    (second,) = pool.verify(["x"], ["y"])
    assert (second.reward, second.outcome) == (1.0, "ok")
    assert second.gold_parsed != first.gold_parsed


@pytest.mark.slow
def test_worker_killed_during_a_request(stub, tmp_path):
    """Not the answer's fault: another worker judges it."""
    pool, note = stub(), tmp_path / "pid"
    results = []
    thread = threading.Thread(target=lambda: results.extend(pool.verify([f"once {note}", "x"], ["y", "y"])))
    thread.start()
    wait_until(lambda: note.exists() and note.read_text())
    os.kill(int(note.read_text()), signal.SIGKILL)
    thread.join()
    assert [(verdict.reward, verdict.outcome) for verdict in results] == [(1.0, "ok")] * 2
    assert results[0].gold_parsed != note.read_text()


@pytest.mark.slow
def test_worker_that_does_not_read(stub):
    """A request of 1 MB does not fit into the pipe."""
    pool = stub(time_limit=1.0)
    (first,) = pool.verify(["x"], ["y"])
    os.kill(int(first.gold_parsed), signal.SIGSTOP)
    (verdict,) = pool.verify(["x" * 1_000_000], ["y"])
    assert (verdict.reward, verdict.outcome) == (0.0, "timed_out")
    assert pool.verify(["x"], ["y"])[0].reward == 1.0


@pytest.mark.slow
def test_interrupts_are_the_trainers(stub):
    pool = stub()
    (first,) = pool.verify(["x"], ["y"])
    os.kill(int(first.gold_parsed), signal.SIGINT)
    assert pool.verify(["x"], ["y"]) == [first]


def test_texts_of_the_completions_table_are_cut(pool):
    (verdict,) = pool.verify([r"\boxed{\text{" + "a" * 20_000 + "}}"], ["$" + "+1" * 6_000 + "$"])
    assert len(verdict.gold_parsed) == len(verdict.answer_parsed) == 10_000


@pytest.mark.slow
def test_what_libraries_print_is_no_reply(stub):
    pool = stub()
    assert [verdict.reward for verdict in pool.verify(["print", "print", "x"], ["y"] * 3)] == [1.0] * 3


@pytest.mark.slow
def test_starting_up_does_not_count(stub):
    pool = stub("time.sleep(4)", time_limit=2.0)
    assert pool.verify(["x"], ["y"])[0].outcome == "ok"


@pytest.mark.slow
def test_workers_are_replaced(stub):
    def processes(pool, texts):
        return [verdict.gold_parsed for verdict in pool.verify(texts, ["y"] * len(texts))]

    pids = processes(stub(max_tasks=3), ["x"] * 7)
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
    pids = processes(stub(), ["x", f"swell {1 << 29}", "x", "x"])
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.slow
def test_workers_that_cannot_start(stub):
    pool = stub("import no_such_module")
    with pytest.raises(RuntimeError, match=r"(?s)exit status 1.*No module named 'no_such_module'"):
        pool.verify(["x"] * 3, ["y"] * 3)
    pool.close()
    assert not [p for p in children() if "stub.py" in " ".join(p.cmdline())]


@pytest.mark.slow
def test_memory_cap_of_a_real_worker():
    with MathVerifier(workers=1, memory_limit_gib=0.25) as pool:
        pool.verify([""], ["1"])
        limits = Path(f"/proc/{pool._workers[0].process.pid}/limits").read_text()
        assert f"Max address space         {1 << 28} " in limits
        assert pool.verify([HOSTILE["1 MB of digits"][0]], ["7"])[0].reward == 0.0
        assert pool.verify([r"\boxed{7}"], ["7"])[0].reward == 1.0


@pytest.mark.slow
def test_workers_import_neither_torch_nor_the_main_script(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import os\nprint('imported', flush=True)\n"
        "from trl_credit.rewards.verifier import MathVerifier\n"
        "pool = MathVerifier(workers=1)\n"
        "print(pool.verify([r'\\boxed{7}'], ['7'])[0].reward)\n"
        "print('torch' in open(f'/proc/{pool._workers[0].process.pid}/maps').read())\n"
        "print('torch' in open(f'/proc/{os.getpid()}/maps').read())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["imported", "1.0", "False", "True"]


def test_workers_find_what_this_process_finds(monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setattr("sys.path", [*sys.path, Path("ignored"), "/added/later"])
    found = _worker_environment()
    assert found["PYTHONPATH"].split(os.pathsep)[-1] == "/added/later"
    assert "PYTHONSAFEPATH" not in found


@pytest.mark.slow
def test_failures_are_counted(stub, monkeypatch):
    """In TRL's metrics, for each call; and the completions table says what happened."""
    pool = stub(time_limit=1.0)
    monkeypatch.setattr("trl_credit.rewards.several.default_verifier", lambda: pool)
    metrics, columns = {}, {}
    texts = ["x", "hang", "raise", "hang", ""]
    log = {"log_metric": metrics.__setitem__, "log_extra": columns.__setitem__}
    assert accuracy(texts, [5, 5, 5, 5, 5], **log) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert metrics == {"verifier/timeouts": 2.0, "verifier/crashes": 1.0}
    assert columns["solution"] == ["5"] * 5
    assert columns["answer_parsed"] == ["x", "[timed_out]", "[crashed]", "[timed_out]", ""]
    assert accuracy(["x"], ["5"], **log) == [1.0]
    assert metrics == {"verifier/timeouts": 0.0, "verifier/crashes": 0.0}


@pytest.mark.slow
def test_many_threads(pool):
    """Results come back to whoever asked."""
    results = {}

    def ask(i):
        results[i] = [
            v.answer_parsed for v in pool.verify([rf"\boxed{{{i * 100 + j}}}" for j in range(20)], ["1"] * 20)
        ]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [f"[{i * 100 + j}, '{i * 100 + j}']" for j in range(20)] for i in range(1, 7)}


@pytest.mark.slow
def test_fork(stub):
    """The child has workers of its own, and leaves the parent's alone, also at its exit."""
    pool = stub(workers=2)
    before = {v.gold_parsed for v in pool.verify(["x"] * 20, ["y"] * 20)}
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, pool.verify(["x"], ["y"])[0].gold_parsed.encode())
            pool._finalizer()  # what the interpreter does at its exit
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        if not select.select([pipe], [], [], 60)[0]:
            os.kill(pid, signal.SIGKILL)
        theirs = pipe.read()
    os.waitpid(pid, 0)
    assert theirs.isdigit()
    assert theirs not in before
    assert {v.gold_parsed for v in pool.verify(["x"] * 20, ["y"] * 20)} <= before
    assert not psutil.pid_exists(int(theirs))


@pytest.mark.parametrize("state", ["idle", "loop", "forked"])
@pytest.mark.slow
def test_workers_end_with_a_killed_trainer(state, stub):
    """An idle one at the end of its input, also where a child of the trainer lives on; and one in a C loop at its limit
    of CPU time."""
    stub()
    script = (
        "import os, sys\n"
        "from trl_credit.rewards import verifier\n"
        f"verifier._SCRIPT = {verifier._SCRIPT!r}\n"
        "pool = verifier.MathVerifier(workers=1, time_limit=3.0)\n"
        "first = pool.verify(['x'], ['y'])[0].gold_parsed\n"
        "print(first, flush=True)\n"
        f"{state == 'forked'} and os.fork() == 0 and print('forked', flush=True)\n"
        f"pool.verify(['loop'], ['y']) if {state == 'loop'} else sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as trainer:
        worker = psutil.Process(int(trainer.stdout.readline()))
        if state == "forked":
            assert trainer.stdout.readline()
        if state == "loop":
            wait_until(lambda: worker.cpu_percent(0.1) > 50)
        trainer.kill()
        try:
            wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        finally:
            if worker.is_running():
                worker.kill()


@pytest.mark.slow
def test_workers_end_with_the_verifier(stub):
    pool = stub()
    (verdict,) = pool.verify(["x"], ["y"])
    pool.close()
    assert not psutil.pid_exists(int(verdict.gold_parsed))
    (verdict,) = pool.verify(["x"], ["y"])  # and starts again
    finalizer = pool._finalizer
    assert finalizer.alive
    assert finalizer.atexit
    finalizer()
    assert not psutil.pid_exists(int(verdict.gold_parsed))
    pool = MathVerifier(workers=1)
    pool.verify([""], ["1"])
    pid = pool._workers[0].process.pid
    assert psutil.pid_exists(pid)
    del pool
    gc.collect()
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("rounds", [6, pytest.param(20, marks=pytest.mark.nightly)], ids=["30_000", "100_000"])
def test_nothing_leaks_over_many_answers(rounds):
    """File descriptors, threads and processes stay as many; memory is bounded, here and in the workers."""
    plain = [("I do not know.", "7"), ("", "12"), ("The answer is 5", "5"), ("so it is clear", r"\frac{1}{2}")]
    usage, before = [], children()  # of other tests

    def own():
        return [child for child in children() if child not in before]

    with MathVerifier(workers=2, time_limit=2.0, max_tasks=5_000) as pool:
        for i in range(rounds):
            batch = [(rf"\boxed{{{i * 1000 + j}}}", str(j)) for j in range(1000)] + plain * 999
            batch += [HOSTILE["tower"], HOSTILE["1 MB of dollars"], (r"\boxed{7}", "sorry"), (r"\boxed{x+y}", "$y+x$")]
            verdicts = pool.verify(*zip(*batch, strict=True))
            assert len(verdicts) == 5_000
            assert [v.outcome for v in verdicts].count("timed_out") == 1
            assert sum(v.reward is None for v in verdicts) == 1
            workers = own()
            usage.append(
                {
                    "descriptors": len(os.listdir("/proc/self/fd")),
                    "threads": threading.active_count(),
                    "processes": len(workers),
                    "memory": psutil.Process().memory_info().rss,
                    "worker memory": max(worker.memory_info().rss for worker in workers),
                }
            )
    print(*usage, sep="\n")
    steady = usage[2:]
    for name in ("descriptors", "threads", "processes"):
        # Between its end and its next start, a worker has no process
        assert max(u[name] for u in usage) <= usage[0][name] + (2 if name == "descriptors" else 1), name
    assert max(u["memory"] for u in steady) - steady[0]["memory"] < 30e6
    assert max(u["worker memory"] for u in usage) < 250e6
    assert not own()
