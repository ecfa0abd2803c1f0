"""Made-up and real evaluations and comparisons, and a browser that reports errors."""

import html
import json
import random
import re
import shutil

import pytest
from jinja2 import Undefined

from trl_credit.evaluation import EvalConfig, evaluate
from trl_credit.evaluation.compare_page import write_comparison_report
from trl_credit.report import page
from trl_credit.report.page import environment


# Ends elements, opens comments, runs scripts, turns the direction of text, cannot be encoded
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--<script>&lt;b&gt;"
    "\x00\u202egnp.exe\u202c\u2028\u2029\u200f\ud800 {{ 7 * 7 }} $\\frac{1}{2}$ 解 😀"
)

SHOWN = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--<script>&lt;b&gt;"
    "[U+0000][U+202E]gnp.exe[U+202C][U+2028][U+2029][U+200F]\ufffd {{ 7 * 7 }} $\\frac{1}{2}$ 解 😀"
)


def make_samples(tasks, problems, n, characters=400, seed=0):
    draw = random.Random(seed)
    words = [
        "so",
        "the",
        "sum",
        "of",
        "all",
        "integers",
        "is",
        "therefore",
        "we",
        "get",
        "mod",
        "7",
        "x",
        "=",
        "+",
        "204",
    ]
    for task in tasks:
        for problem in range(problems):
            for index in range(n):
                size = int(characters * draw.uniform(0.4, 1.6))
                text = " ".join(draw.choices(words, k=size // 4))
                status = draw.choices(["judged", "unparsed", "empty"], [8, 1, 0.3])[0]
                right = status == "judged" and draw.random() < (problem + 1) / (problems + 2)
                outcome = "timed_out" if status == "judged" and not right and draw.random() < 0.05 else "ok"
                answer = {"judged": str(100 + problem if right else draw.randrange(100))}.get(status)
                yield {
                    "task": task,
                    "problem": problem,
                    "index": index,
                    "seed": 1000 + index,
                    "text": ""
                    if status == "empty"
                    else f"{text}\nneedle-{task}-{problem}-{index}. \\boxed{{{answer}}}",
                    "tokens": 0 if status == "empty" else size // 3,
                    "finish": "length" if status == "unparsed" else "stop",
                    "correct": None if outcome != "ok" else right,
                    "answer": answer,
                    "vote": answer,
                    "status": status,
                    "reason": "equal to the solution" if right else "not equal to the solution",
                    "outcome": outcome,
                }


def summarise(samples, per_problem=True):
    right = sum(sample["correct"] is True for sample in samples)
    tokens = sorted(sample["tokens"] for sample in samples)
    result = {
        "problems": len({sample["problem"] for sample in samples}),
        "n": len({sample["index"] for sample in samples}),
        "avg": right / len(samples),
        "stderr": 0.031,
        "pass": {"1": 0.25, "2": 0.37, "4": 0.48, "8": 0.57, "16": 0.66, "32": 0.733},
        "maj": {"1": 0.25, "2": 0.25, "4": 0.31, "8": 0.36, "16": 0.4, "32": 0.4},
        "truncated": 0.011,
        "unparsed": 0.1,
        "empty": 0.02,
        "unverified": 3,
        "unjudged": 0,
        "tokens": {"mean": sum(tokens) / len(tokens), "p50": tokens[len(tokens) // 2], "max": tokens[-1]},
    }
    for name in ("pass", "maj"):
        result[name] = {k: value for k, value in result[name].items() if int(k) <= result["n"]}
    if per_problem:
        result["per_problem"] = [
            {
                "problem": problem,
                "answer": str(100 + problem),
                "correct": sum(sample["correct"] is True for sample in chosen),
                "n": len(chosen),
                "accuracy": sum(sample["correct"] is True for sample in chosen) / len(chosen),
                "mean_tokens": sum(sample["tokens"] for sample in chosen) / len(chosen),
                "majority": str(100 + problem if problem % 2 else 7),
                "majority_correct": bool(problem % 2),
            }
            for problem in sorted({sample["problem"] for sample in samples})
            for chosen in [[sample for sample in samples if sample["problem"] == problem]]
        ]
    return result


def make_evaluation(tasks=("aime24", "aime25"), problems=30, n=4, **options):
    samples = list(make_samples(tasks, problems, n, **options))
    return {
        "results": {
            "format": 1,
            "created": "2026-11-21T22:00:00Z",
            "trl_credit": "0.1.0",
            "model": "Qwen/Qwen2.5-Math-7B",
            "settings": {"sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 32768}, "n": n},
            "versions": {"transformers": "5.20.0", "torch": "2.8.0"},
            "fingerprint": {"model": "abc", "data": dict.fromkeys(tasks, "def"), "settings": "123", "run": "456"},
            "tasks": {task: summarise([s for s in samples if s["task"] == task]) for task in tasks},
            "overall": summarise(samples, per_problem=False),
            "session": {"samples": 120, "tokens": 48_000, "seconds": 1234.5, "tokens_per_second": 38.9},
        },
        "problems": [
            {
                "task": task,
                "problem": problem,
                "question": f"Find the number of ordered pairs of positive integers in case {problem} of {task}.",
                "prompt": [{"role": "user", "content": f"Solve case {problem}."}],
                "answer": str(100 + problem),
            }
            for task in tasks
            for problem in range(problems)
        ],
        "samples": samples,
    }


def make_comparison(sizes=(30, 30), seed=0, shift=0.08, differences=()):
    draw = random.Random(seed)
    tasks = {}
    for number, size in enumerate(sizes):
        rows = []
        for problem in range(size):
            difference = max(-1.0, min(1.0, draw.gauss(shift, 0.2)))
            low, high = max(-1.0, difference - 0.2), min(1.0, difference + 0.2)
            rows.append(
                {
                    "problem": problem,
                    "question": f"Case {problem}: "
                    + "find the remainder when the sum is divided by 1000. " * (1 + problem % 3),
                    "answer": str(100 + problem),
                    "a_correct": 10,
                    "a_n": 32,
                    "b_correct": 10 + round(16 * difference),
                    "b_n": 32,
                    "difference": difference,
                    "low": low,
                    "high": high,
                    "moved": "up" if low > 0 else "down" if high < 0 else "same",
                }
            )
        mean = sum(row["difference"] for row in rows) / size
        tasks[f"aime{24 + number}"] = {
            "problems": size,
            "a_avg": 0.31,
            "b_avg": 0.31 + mean,
            "difference": mean,
            "low": mean - 0.031,
            "high": mean + 0.031,
            "level": 0.95,
            "p_value": 0.012,
            "per_problem": rows,
        }
    mean = sum(task["difference"] for task in tasks.values()) / len(tasks)
    overall = {"difference": mean, "low": mean - 0.03, "high": mean + 0.03, "level": 0.95}
    return {
        "a": {"name": "base", "model": "Qwen/Qwen2.5-Math-7B", "path": "outputs/base", "settings": {"n": 32}},
        "b": {"name": "gcpo, 500 updates", "model": "outputs/gcpo", "path": "outputs/eval", "settings": {"n": 32}},
        "differences": list(differences),
        "tasks": tasks,
        "overall": {"a_avg": 0.31, "b_avg": 0.31 + mean} | overall,
    }  # fmt: skip


def hostile_evaluation():
    data = make_evaluation(tasks=(HOSTILE, "aime25"), problems=3, n=2)
    data["results"] |= {"model": HOSTILE, "settings": {HOSTILE: HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    for row in data["results"]["tasks"][HOSTILE]["per_problem"]:
        row |= {"answer": HOSTILE, "majority": HOSTILE}
    for problem in data["problems"]:
        problem |= {"question": HOSTILE, "answer": HOSTILE, "prompt": [{"role": HOSTILE, "content": HOSTILE}]}
    for sample in data["samples"]:
        sample |= {"text": HOSTILE, "answer": HOSTILE, "vote": HOSTILE + "2", "reason": HOSTILE}
    return data


def hostile_comparison():
    data = make_comparison(sizes=(4,), differences=[{"field": HOSTILE, "a": HOSTILE, "b": {"c": HOSTILE}}])
    data["tasks"] = {HOSTILE: data["tasks"]["aime24"]}
    for side in "ab":
        data[side] = dict.fromkeys(("name", "model", "path"), HOSTILE) | {"settings": {"x": HOSTILE}, "fingerprint": {}}
    for row in data["tasks"][HOSTILE]["per_problem"]:
        row |= {"question": HOSTILE, "answer": HOSTILE}
    return data


# ---- What an evaluation writes


def run_evaluation(folder, **options):
    settings = {"tasks": ["trl_credit:arithmetic"], "n": 3, "max_tokens": 40, "generated_dataset_size": 4}
    config = EvalConfig(model="trl_credit:quickstart", output_dir=str(folder), report=True, **settings | options)
    return evaluate(config)


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """The folder of an evaluation."""
    folder = tmp_path_factory.mktemp("real") / "run"
    run_evaluation(folder)
    return folder


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """One with other settings and a second task, one of whose two problems has no usable solution."""
    folder = tmp_path_factory.mktemp("other")
    problems = [
        {"problem": "3+4=", "answer": "7"},
        {
            "problem": "3+5=",
            "answer": "it depends on what you mean by the word and on whom you ask about its many uses",
        },
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    tasks = ["trl_credit:arithmetic", f"own={folder / 'own.jsonl'}"]
    run_evaluation(
        folder / "run", tasks=tasks, temperature=0.9, seed=1, plain_prompts=True, prompt_template="{problem}"
    )
    return folder / "run"


@pytest.fixture
def missing_names(monkeypatch):
    """What templates ask for and is not there."""
    names = set()

    class Recorded(Undefined):
        def __init__(self, *rest, **options):
            super().__init__(*rest, **options)
            names.add(self._undefined_name)

    def recording(package):
        result = environment(package)
        result.undefined = Recorded
        return result

    monkeypatch.setattr(page, "environment", recording)
    return names


def words(path):
    """The text of a page, without its scripts."""
    text = re.sub(r"<(script|style).*?</\1>", "", path.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", text)).split())


# ---- In a browser


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.fail("the browser tests need playwright: pip install 'trl-credit[dev]'")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            pytest.fail(f"no browser to test in: `apt install chromium` or `playwright install chromium`\n{error}")
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a report, and holds it to asking for nothing, complaining of nothing and running nothing it was not given."""
    contexts, complaints = [], []

    def open_(path, fragment="", width=1280, scheme="light", height=900):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith((path.as_uri(), "data:")) or complaints.append(request.url),
        )
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
        page.goto(path.as_uri() + fragment)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def comparison_report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "comparison.html"
    data = make_comparison(differences=[{"field": "sampling.temperature", "a": 0.6, "b": 1.0}])
    write_comparison_report(path, data)
    return path, data


def found(page):
    """The number of samples that pass the filters, once no search is under way."""
    page.wait_for_selector("#list:not([aria-busy])")
    return int(page.inner_text("#status").split(" of ")[0].replace(",", ""))
