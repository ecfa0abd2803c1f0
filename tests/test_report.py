import base64
import builtins
import errno
import html
import json
import random
import re
import shutil
import zlib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from jinja2 import Undefined

from trl_credit._util.files import RunFolderError, read_lines
from trl_credit.evaluation import EvalConfig, compare_runs, evaluate
from trl_credit.evaluation import page as evaluation
from trl_credit.evaluation.charts import bin_edges, curve_chart, difference_chart, length_chart
from trl_credit.evaluation.compare_page import changes_sampling, headline, plot_comparison, write_comparison_report
from trl_credit.evaluation.page import write_evaluation_report
from trl_credit.evaluation.store import read_results
from trl_credit.report import page
from trl_credit.report.page import clean, duration, embed, environment, flatten, percent, points, visible


# Too long for a text that is compared
UNREADABLE = "it depends on what you mean by the word and on whom you ask about its many uses"


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


# ---- Without a browser


def test_no_text_can_leave_its_json():
    text = embed({HOSTILE: [HOSTILE, float("nan"), float("inf"), None]})
    assert not re.search("[<>&\u2028\u2029\x00\ud800]", text)
    (key,) = json.loads(text)
    assert key == HOSTILE.replace("\ud800", "\ufffd")
    assert json.loads(text)[key] == [key, None, None, None]


def test_controls_are_spelled_out():
    assert visible(HOSTILE) == SHOWN
    assert clean({"a": ("\udc00", 1.5)}) == {"a": ["\ufffd", 1.5]}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: percent(0.2534), "25.3 %"),
        (lambda: percent(None), "\u2013"),
        (lambda: percent(float("nan")), "\u2013"),
        (lambda: points(0.0421), "+4.2"),
        (lambda: points(-0.0421), "\u22124.2"),
        (lambda: points(-0.0001), "0.0"),
        (lambda: duration(3.21), "3.2 s"),
        (lambda: duration(75.4), "75 s"),
        (lambda: duration(1234.5), "21 min"),
        (lambda: duration(40_000), "11 h 7 min"),
        (lambda: duration(None), "\u2013"),
    ],
)
def test_numbers_as_text(call, text):
    assert call() == text


def test_settings_are_flattened():
    assert flatten({"a": {"b": 1, "c": [2]}, "d": None, "e": {}, "f": "x"}) == [
        ("a.b", "1"),
        ("a.c", "[2]"),
        ("d", "\u2013"),
        ("e", "{}"),
        ("f", "x"),
    ]


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


@pytest.mark.parametrize("kind", ["evaluation", "comparison"])
def test_hostile_text_stays_text(tmp_path, kind):
    path = tmp_path / "deep" / "report.html"
    if kind == "evaluation":
        write_evaluation_report(path, **hostile_evaluation())
    else:
        write_comparison_report(path, hostile_comparison())
    page = path.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img" not in page
    assert not re.search("[\x00\u202e]", page.replace("\\u0000", "").split('id="data"')[0])
    assert page.count("Content-Security-Policy") == 1
    assert "default-src 'none'" in page
    assert "unsafe-inline" not in page
    assert not re.search(r"""(src|href)=["']""", page)
    assert list(path.parent.iterdir()) == [path]


def test_nothing_missing_shows_as_a_word(tmp_path):
    data = make_evaluation(tasks=("aime24",), problems=2, n=2)
    metrics = data["results"]["tasks"]["aime24"]
    metrics |= {"stderr": None, "tokens": None, "pass": {"1": float("nan")}, "maj": {}, "truncated": None}
    metrics["per_problem"][0] |= {"accuracy": None, "mean_tokens": None, "majority": None, "correct": None}
    data["results"] |= {"session": None, "overall": {}, "model": None}
    for sample in data["samples"]:
        sample |= {"tokens": None, "seed": None}
    write_evaluation_report(tmp_path / "a.html", **data)

    comparison = make_comparison(sizes=(2,))
    comparison["tasks"]["aime24"] |= {"p_value": None, "low": None, "high": float("nan"), "a_avg": None}
    comparison["tasks"]["aime24"]["per_problem"][0] |= {"difference": None, "low": None, "question": None, "a_n": 0}
    comparison["overall"] = {}
    comparison["a"] = {}
    write_comparison_report(tmp_path / "b.html", comparison)
    plot_comparison(tmp_path / "b.png", comparison)

    write_comparison_report(tmp_path / "c.html", {"a": {}, "b": {}, "tasks": {}, "overall": {}})
    write_evaluation_report(tmp_path / "d.html", {"model": "m", "tasks": {}, "overall": {}}, [], [])
    for name in "abcd":
        page = re.sub(r"<(script|style).*?</\1>", "", (tmp_path / f"{name}.html").read_text("utf-8"), flags=re.DOTALL)
        assert not re.search(r"\b(None|NaN|nan|undefined|Undefined|inf)\b", page)
    assert "no standard error" in (tmp_path / "a.html").read_text("utf-8")


def test_the_longest_texts_are_cut_in_the_middle(tmp_path, monkeypatch):
    data = make_evaluation(tasks=("aime24",), problems=4, n=3)
    long = data["samples"][5]
    # Random digits hardly compress
    long["text"] = "BEGINNING" + "".join(random.Random(0).choices("0123456789", k=100_000)) + "END"
    assert evaluation._cut_longest([zlib.compress(b"x")], [{}], 100) == 0
    monkeypatch.setattr(evaluation, "TEXT_LIMIT", 20_000)
    write_evaluation_report(tmp_path / "cut.html", **data)
    page = (tmp_path / "cut.html").read_text("utf-8")
    assert "1 of 12 texts are cut in this report" in page
    assert page.count("left_out") == 1 + page.count("sample.left_out")
    texts = [zlib.decompress(base64.b64decode(text)).decode()
             for text in re.findall(r'id="text-\d+">(.*?)<', page)]  # fmt: skip
    assert texts[5].startswith("BEGINNING")
    assert texts[5].endswith("END")
    assert "characters are left out here" in texts[5]
    assert texts[4] == data["samples"][4]["text"]
    assert sum(len(zlib.compress(text.encode())) for text in texts) <= 20_000


def test_a_failure_leaves_the_old_report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    data = make_evaluation(tasks=("aime24",), problems=1, n=1)
    data["problems"] = [{"question": object()}]
    with pytest.raises(TypeError):
        write_evaluation_report(path, **data)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("lengths", [[0], [1, 1], [1, 40_000], [1000, 1010, 1023, 1024], list(range(5000, 9000))])
def test_every_length_has_a_bin(lengths):
    edges = bin_edges(lengths)
    assert len(edges) <= 25
    assert edges[0] <= max(1, min(lengths))
    assert edges[-1] > max(lengths)
    chart = length_chart(lengths, lengths[:1], "tokens")
    counts = [int(number) for number in re.findall(r"tokens: (\d+) right", chart)]
    assert sum(counts) == len(lengths)
    if len(set(lengths)) > 1:
        # The axis has labels besides its name and those at the side
        assert 2 <= chart.count("<text") - 4 <= 8


def test_charts_say_in_words_what_they_draw():
    chart = curve_chart("aime24", {"1": 0.25, "4": 0.5}, {"1": 0.25, "4": None})
    assert "pass@k goes from 25.0 % at k = 1 to 50.0 % at k = 4" in chart
    assert chart.count("<line") == 5 + 1
    assert curve_chart("x", {}, None) is None
    # A lone point is no curve
    assert curve_chart("x", {"1": 0.25}, {"1": 0.25}) is None
    rows = make_comparison(sizes=(30,))["tasks"]["aime24"]["per_problem"]
    up = sum(row["moved"] == "up" for row in rows)
    assert f"{up} problems moved up" in difference_chart("aime24", rows)
    assert difference_chart("x", []) is None


def test_one_length_is_one_narrow_bar():
    chart = length_chart([32, 32], [32], "tokens")
    assert ">32 tokens: 2 right<" in chart
    assert ">32 tokens: 1 wrong<" in chart
    assert 'width="6.00%"' in chart
    assert [text for text in re.findall("<text[^>]*>([^<]*)", chart) if text not in ("0", "2")] == ["32", "tokens"]


@pytest.mark.parametrize(
    ("overall", "text"),
    [
        ((0.042, 0.011, 0.073), "B is better by 4.2 points (95 % interval 1.1 to 7.3)."),
        ((-0.042, -0.073, -0.011), "A is better by 4.2 points (95 % interval 1.1 to 7.3)."),
        ((0.01, -0.02, 0.04), "No difference beyond noise: B minus A is +1.0 points (95 % interval −2.0 to +4.0)."),  # noqa: RUF001
        ((0.01, None, None), "B minus A is +1.0 points, without an interval."),
        ((None, None, None), "The runs cannot be compared: they have no problem in common that both were judged on."),
    ],
)
def test_headline(overall, text):
    assert headline({"overall": dict(zip(("difference", "low", "high"), overall, strict=True))}) == text


def test_no_interval_from_a_standard_error_of_zero():
    assert evaluation.interval({"avg": 0.5, "stderr": 0.1}) == pytest.approx((0.304, 0.696))
    assert evaluation.interval({"avg": 0.05, "stderr": 0.1})[0] == 0
    assert evaluation.interval({"avg": 0.0, "stderr": 0.0}) is None
    assert evaluation.interval({"avg": 0.5, "stderr": None}) is None


def test_tasks_of_one_run_are_named(tmp_path):
    write_comparison_report(tmp_path / "a.html", make_comparison() | {"left_out": ["math500"]})
    assert "only one of the runs has them: math500." in (tmp_path / "a.html").read_text("utf-8")


def test_which_differences_are_flagged(tmp_path):
    flagged = ("backend", "sampling.temperature", "n", "chat_template_kwargs.enable_thinking", "notes",
               "tasks.own.v2.first_prompt", "tasks.preset.answer_pattern")  # fmt: skip
    expected = ("versions.torch", "preset.name", "preset.source", "seed", "tasks.own.v2.source")
    assert [changes_sampling({"field": field}) for field in flagged] == [True] * len(flagged)
    assert [changes_sampling({"field": field}) for field in expected] == [False] * len(expected)
    write_comparison_report(tmp_path / "same.html", make_comparison(differences=[{"field": "seed", "a": 0, "b": 1}]))
    assert "same sampling settings" in (tmp_path / "same.html").read_text("utf-8")
    other = [{"field": "sampling.temperature", "a": 0.6, "b": 1.0}]
    write_comparison_report(tmp_path / "other.html", make_comparison(differences=other))
    assert "made with different settings" in (tmp_path / "other.html").read_text("utf-8")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture(tmp_path, suffix):
    plot_comparison(tmp_path / f"a.{suffix}", make_comparison(sizes=(30, 500)))
    start = (tmp_path / f"a.{suffix}").read_bytes()[:100]
    assert b"PNG" in start if suffix == "png" else b"<?xml" in start


def test_picture_of_names_that_look_like_formulas(tmp_path):
    comparison = make_comparison(sizes=(3,))
    comparison["a"]["name"] = r"$\nonsense{ $x_$"
    comparison["tasks"] = {r"$\frac{": comparison["tasks"]["aime24"]}
    plot_comparison(tmp_path / "a.png", comparison)


def test_picture_without_matplotlib(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'trl-credit\[eval\]'"):
        plot_comparison(tmp_path / "a.png", make_comparison())


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


def test_the_report_reads_what_an_evaluation_writes(real_run, missing_names, tmp_path):
    results = read_results(real_run)
    problems, samples = (read_lines(real_run / name) for name in ("problems.jsonl", "samples.jsonl"))
    samples = list(samples)
    write_evaluation_report(tmp_path / "report.html", results, problems, samples)
    assert missing_names == set()
    # What the page's script reads, besides what it adds itself
    script = re.sub("//.*", "", (Path(evaluation.__file__).parent / "templates/evaluation.js").read_text("utf-8"))
    added = {"position", "problemKey", "key", "length", "characters", "left_out"}
    assert set(re.findall(r"\bsample\.(\w+)", script)) - added <= set(samples[0])
    assert set(re.findall(r"\bproblem\.(\w+)", script)) <= set(problems[0])
    text = words(real_run / "report.html")
    assert not re.search(r"\b(None|NaN|nan|undefined|Undefined)\b", text)
    session = results["session"]
    assert f"Last session, main process: 12 samples in {duration(session['seconds'])}, " in text
    assert f"{session['tokens']} tokens, {session['tokens_per_second']:,.0f} a second." in text
    assert "trl_credit:quickstart: evaluation" in text
    assert "sampling.max_tokens 40 " in text
    assert f"transformers {results['versions']['transformers']} " in text
    task = results["tasks"]["trl_credit:arithmetic"]
    assert text.count("✓") == sum(row["majority_correct"] is True for row in task["per_problem"]) > 0
    assert "not judged" not in text
    # A run that only had to be judged
    results["session"] = {"samples": 0, "tokens": 0, "seconds": 4321, "tokens_per_second": None}
    write_evaluation_report(tmp_path / "report.html", results, problems, samples)
    assert "Last session, main process: 0 samples in 72 min." in words(tmp_path / "report.html")


def test_unjudged_problems_are_named(other_run):
    results = read_results(other_run)
    assert results["tasks"]["own"]["unjudged"] == 1
    text = words(other_run / "report.html")
    assert "problems 4 1 of 2" in text
    assert re.search(
        r"own 1 not judged \u2013 [\d.,]+ it depends on what you mean by the word and on whom you ask about its many uses",
        text,
    )
    page_text = (other_run / "report.html").read_text("utf-8")
    assert page_text.count('class="rest"') == 4 + 1


def test_the_mark_of_a_right_majority(tmp_path):
    data = make_evaluation(tasks=("aime24",), problems=4, n=2)
    rows = data["results"]["tasks"]["aime24"]["per_problem"]
    rows[0] |= {"answer": "1/2", "majority": "0.5", "majority_correct": True}
    rows[1] |= {"answer": "7", "majority": "7", "majority_correct": None}
    rows[2] |= {"answer": "7", "majority": "7", "majority_correct": False}
    del rows[3]["majority_correct"]
    write_evaluation_report(tmp_path / "a.html", **data)
    assert words(tmp_path / "a.html").count("✓") == 1
    assert "1/2 0.5 ✓" in words(tmp_path / "a.html")


def test_a_long_list_says_that_it_scrolls(tmp_path):
    for problems, said in ((4, False), (30, True)):
        write_evaluation_report(tmp_path / "a.html", **make_evaluation(tasks=("aime24",), problems=problems, n=1))
        text = words(tmp_path / "a.html")
        assert ("30 problems: scroll." in text) == said
        assert "pass@k and maj@k" not in text


def test_the_report_reads_what_a_comparison_returns(real_run, other_run, missing_names, tmp_path):
    comparison = compare_runs(real_run, other_run)
    fields = {item["field"]: changes_sampling(item) for item in comparison["differences"]}
    assert fields == {"sampling.temperature": True, "seed": False}
    write_comparison_report(tmp_path / "a.html", comparison)
    assert missing_names == set()
    text = words(tmp_path / "a.html")
    assert "only one of the runs has them: own." in text
    assert "made with different settings" in text
    assert "Differs, as it may: setting A B seed 0 1" in text
    plot_comparison(tmp_path / "a.png", comparison)


def test_a_report_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFolderError, match=r"report\.html.*No space left on device"):
        write_evaluation_report(tmp_path / "report.html", {}, [], [])
    assert list(tmp_path.iterdir()) == []


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
        page.on("request", lambda request: request.url.startswith(path.as_uri()) or complaints.append(request.url))
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
        page.goto(path.as_uri() + fragment)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def evaluation_report(tmp_path_factory):
    data = make_evaluation()
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_evaluation_report(path, **data)
    return path, data


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


def search(page, text):
    page.fill("[name=q]", text)
    # The search starts when typing has paused. wait_for_function would need `eval`, which the page's policy forbids.
    page.wait_for_url(lambda url: parse_qs(urlsplit(url).fragment).get("q", [""]) == [text])


def reader_title(page):
    return page.inner_text("#reader h3 >> nth=0")


def titles(page):
    return page.locator("#list .where").all_inner_texts()


@pytest.mark.browser
@pytest.mark.slow
def test_filters_show_what_they_say(open_page, evaluation_report):
    path, data = evaluation_report
    page = open_page(path)
    samples = data["samples"]
    assert found(page) == len(samples) == 240
    assert page.locator("#list li").count() == 50
    tests = {
        "right": lambda sample: sample["correct"] is True,
        "wrong": lambda sample: sample["correct"] is False,
        "answered": lambda sample: sample["correct"] is False and sample["status"] == "judged",
        "unparsed": lambda sample: sample["status"] == "unparsed",
        "empty": lambda sample: sample["status"] == "empty",
        "truncated": lambda sample: sample["finish"] == "length",
        "failed": lambda sample: sample["outcome"] != "ok",
        "unjudged": lambda sample: sample["correct"] is None,
    }
    offered = page.locator("[name=show] option").evaluate_all("options => options.map(option => option.value)")
    assert offered == ["", *tests]
    for name, test in tests.items():
        page.select_option("[name=show]", name)
        expected = sum(map(test, samples))
        assert expected > 0
        assert found(page) == expected
        assert f"({expected})" in page.inner_text(f"[name=show] option[value={name}]")
    page.select_option("[name=show]", "right")
    page.select_option("[name=task]", "aime25")
    assert found(page) == sum(sample["correct"] is True and sample["task"] == "aime25" for sample in samples)
    page.select_option("[name=problem]", "aime25/29")
    chosen = [s for s in samples if s["correct"] is True and (s["task"], s["problem"]) == ("aime25", 29)]
    assert found(page) == len(chosen)
    # A problem of another task cannot stay chosen
    page.select_option("[name=task]", "aime24")
    assert page.input_value("[name=problem]") == ""
    page.click("#clear")
    assert found(page) == 240


@pytest.mark.browser
@pytest.mark.slow
def test_samples_without_a_verdict(open_page, other_run):
    page = open_page(other_run / "report.html")
    assert found(page) == 18
    page.select_option("[name=show]", "unjudged")
    assert "not judged (3)" in page.inner_text("[name=show] option[value=unjudged]")
    assert found(page) == 3
    assert set(page.locator("#list .verdict").all_inner_texts()) <= {"not judged", "not judged, cut off"}
    assert "not judged" in page.inner_text("#reader dl")
    assert "cannot be" in page.inner_text("#reader dl")
    page.wait_for_selector("#text:not(:text-is('…'))")
    assert "undefined" not in page.inner_text("main")


@pytest.mark.browser
@pytest.mark.slow
def test_a_list_that_scrolls_cuts_its_last_row(open_page, evaluation_report):
    page = open_page(evaluation_report[0])
    shown = page.evaluate(
        """[...document.querySelectorAll('#problems tbody tr')].map(row => {
             const edge = row.closest('.scroll').getBoundingClientRect().bottom - 1, box = row.getBoundingClientRect();
             return (edge - box.top) / box.height;
           }).find(share => share <= 1)"""
    )
    assert 0.25 < shown < 0.75


@pytest.mark.browser
@pytest.mark.slow
def test_search_and_reader(open_page, evaluation_report):
    path, data = evaluation_report
    page = open_page(path)
    search(page, "NEEDLE-aime25-3-")
    assert found(page) == sum("needle-aime25-3-" in sample["text"] for sample in data["samples"])
    sample = next(sample for sample in data["samples"] if "needle-aime25-3-" in sample["text"])
    page.wait_for_selector("#text mark")
    assert page.inner_text("#text mark").startswith("needle-aime25-3-")
    assert page.text_content("#text") == sample["text"]
    facts = dict(
        zip(page.locator("#reader dt").all_inner_texts(), page.locator("#reader dd").all_inner_texts(), strict=True)
    )
    assert facts["Answer read"] == (sample["answer"] or "\u2013")
    assert facts["Solution"] == "103"
    assert facts["Why"] == sample["reason"]
    assert facts["Seed"] == str(sample["seed"])
    assert "Find the number of ordered pairs" in page.inner_text("#reader .question")
    # Nothing typed is taken for a pattern
    search(page, ".*(")
    assert found(page) == 0
    assert "No sample passes" in page.inner_text("#list")
    search(page, r"\boxed{1")
    expected = sum("\\boxed{1" in sample["text"] for sample in data["samples"])
    assert found(page) == expected > 0


@pytest.mark.browser
@pytest.mark.slow
def test_order_pages_and_keys(open_page, evaluation_report):
    path, data = evaluation_report
    page = open_page(path)
    page.select_option("[name=sort]", "longest")
    lengths = [int(text.split()[0].replace(",", "")) for text in page.locator("#list .length").all_inner_texts()]
    assert lengths == sorted((sample["tokens"] for sample in data["samples"]), reverse=True)[:50]
    page.select_option("[name=sort]", "index")
    assert titles(page)[:2] == ["aime24 · 0 · sample 0", "aime24 · 1 · sample 0"]
    page.select_option("[name=sort]", "")

    page.focus("#list")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert reader_title(page) == "aime24, problem 0, sample 2"
    page.keyboard.press("k")
    assert reader_title(page) == "aime24, problem 0, sample 1"
    assert page.locator("#list [aria-selected=true]").count() == 1
    page.keyboard.press("PageDown")
    assert page.inner_text("#page") == "2 of 5"
    assert reader_title(page) == "aime24, problem 12, sample 2"
    page.keyboard.press("k")
    assert page.inner_text("#page") == "1 of 5"
    page.keyboard.press("End")
    assert page.inner_text("#page") == "5 of 5"
    assert reader_title(page) == "aime25, problem 29, sample 3"
    page.keyboard.press("j")
    assert reader_title(page) == "aime25, problem 29, sample 3"
    page.click("text=‹ Previous")  # noqa: RUF001
    assert reader_title(page) == "aime25, problem 29, sample 2"
    page.keyboard.press("Enter")
    assert reader_title(page) == "aime25, problem 29, sample 1"


@pytest.mark.browser
@pytest.mark.slow
def test_the_address_holds_the_view(open_page, evaluation_report):
    path, _ = evaluation_report
    page = open_page(path)
    page.select_option("[name=show]", "wrong")
    page.select_option("[name=sort]", "shortest")
    search(page, "7 x")
    found(page)
    page.click("#list li >> nth=3")
    shared = page.evaluate("location.hash")
    assert "show=wrong" in shared
    other = open_page(path, shared)
    assert found(other) == found(page)
    other.wait_for_selector("#text mark")
    assert reader_title(other) == reader_title(page)
    assert titles(other) == titles(page)
    assert other.input_value("[name=q]") == "7 x"
    # An address that another report made, or nobody
    odd = open_page(path, "#task=zz&problem=1&show=constructor&sort=toString&page=-7&sample=x&y=1")
    assert found(odd) == 240
    assert odd.inner_text("#page") == "1 of 5"
    odd.evaluate("location.hash = 'show=right&page=2'")
    odd.wait_for_selector("#page >> text=/^2 of/")


@pytest.mark.browser
@pytest.mark.slow
def test_table_of_problems(open_page, evaluation_report):
    path, data = evaluation_report
    page = open_page(path)

    def column(number):
        return page.locator("#problems tbody tr").evaluate_all(
            "(rows, number) => rows.map(row => row.cells[number].dataset.value)", number
        )

    heading = page.locator("#problems th", has_text="mean tokens")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    ascending = [float(value) for value in column(4)]
    assert ascending == sorted(ascending)
    heading.locator("button").press("Enter")
    assert [float(value) for value in column(4)] == ascending[::-1]
    page.locator("#problems th", has_text="accuracy").locator("button").click()
    shares = [float(value) for value in column(2)]
    expected = [row["accuracy"] for task in data["results"]["tasks"].values() for row in task["per_problem"]]
    assert shares == pytest.approx(sorted(expected))
    page.click("button[data-task='1'][data-problem='7']")
    assert found(page) == 4
    assert reader_title(page) == "aime25, problem 7, sample 0"
    assert page.evaluate("document.activeElement.id") == "list"


@pytest.mark.browser
@pytest.mark.slow
def test_comparison_page(open_page, comparison_report):
    path, data = comparison_report
    page = open_page(path)
    rows = [row for task in data["tasks"].values() for row in task["per_problem"]]
    assert page.inner_text("h1") == headline(data)
    assert "sampling.temperature" in page.inner_text("#flag")

    def visible_rows():
        number = page.locator("#problems tbody tr:visible").count()
        assert page.inner_text("#status") == f"{number} of 60 problems"
        return number

    assert visible_rows() == 60
    for kind in ("up", "down", "same"):
        page.select_option("[name=show]", kind)
        assert visible_rows() == sum(row["moved"] == kind for row in rows) > 0
    page.select_option("[name=show]", "moved")
    page.select_option("[name=task]", "aime25")
    chosen = [row for row in data["tasks"]["aime25"]["per_problem"] if row["moved"] != "same"]
    assert visible_rows() == len(chosen)
    other = open_page(path, page.evaluate("location.hash"))
    assert other.locator("#problems tbody tr:visible").count() == len(chosen)
    page.click("#clear")
    page.fill("[name=q]", "CASE 12:")
    page.wait_for_selector("#status >> text=/^2 of/")
    page.fill("[name=q]", "")
    page.locator("#problems th", has_text="B − A").locator("button").click()  # noqa: RUF001
    values = page.locator("#problems tbody tr").evaluate_all(
        "rows => rows.map(row => Number(row.cells[3].dataset.value))"
    )
    assert values == pytest.approx(sorted(row["difference"] for row in rows))


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evaluation", "comparison"])
def test_hostile_text_does_nothing(open_page, tmp_path, kind):
    path = tmp_path / "hostile.html"
    if kind == "evaluation":
        write_evaluation_report(path, **hostile_evaluation())
        page = open_page(path)
        page.wait_for_selector("#text >> text=alert(1)")
        assert page.text_content("#text") == SHOWN
        assert SHOWN in page.text_content("#reader dl")
        assert page.text_content("#reader .question") == SHOWN
        search(page, "<script>alert(1)")
        assert found(page) == 12
        assert page.text_content("#text") == SHOWN
        page.click("button[data-problem='1'] >> nth=0")
        assert found(page) == 2
    else:
        write_comparison_report(path, hostile_comparison())
        page = open_page(path)
        assert SHOWN in page.text_content("#flag")
    assert "<script>alert(1)" in page.title()
    assert page.locator("img").count() == 0
    assert page.locator("script:not([type])").count() == 1
    page.wait_for_timeout(100)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_page(open_page, evaluation_report, comparison_report, tmp_path, scheme, width):
    hostile = tmp_path / "hostile.html"
    write_evaluation_report(hostile, **hostile_evaluation())
    for path in (evaluation_report[0], comparison_report[0], hostile):
        page = open_page(path, width=width, scheme=scheme)
        page.wait_for_load_state()
        page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
        # A chart's labels may stand outside its box, and must not stand outside the page
        widest = page.evaluate(
            "Math.max(document.scrollingElement.scrollWidth, "
            "...[...document.querySelectorAll('svg.plot text')].map(text => text.getBoundingClientRect().right))"
        )
        assert widest <= width
        leftmost = page.evaluate(
            "Math.min(0, ...[...document.querySelectorAll('svg.plot text')].map(text => text.getBoundingClientRect().left))"
        )
        assert leftmost == 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
        assert dark == (scheme == "dark")


@pytest.mark.browser
@pytest.mark.slow
def test_two_thousand_long_samples(open_page, tmp_path):
    data = make_evaluation(problems=30, n=34, characters=20_000)
    path = tmp_path / "large.html"
    write_evaluation_report(path, **data)
    page = open_page(path)
    assert found(page) == 2040
    page.select_option("[name=show]", "wrong")
    assert found(page) == sum(sample["correct"] is False for sample in data["samples"])
    page.select_option("[name=show]", "")
    search(page, "needle-aime25-29-33.")
    page.wait_for_selector("#status >> text=/^1 of/", timeout=60_000)
    search(page, "needle-aime24-")
    assert found(page) == sum("needle-aime24-" in sample["text"] for sample in data["samples"])
