"""Problems and answers as people's files hold them: one reading for training, evaluation and inspection."""

import gzip
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from trl_credit.data import check_solutions, load_splits, prepare, report_unparsable
from trl_credit.evaluation import EvalConfig
from trl_credit.evaluation.tasks import load_tasks
from trl_credit.fields import Missing, gold_of, make_prompt, paths_of, read_answers, read_field, read_problem
from trl_credit.rewards import accuracy, build_reward, judged
from trl_credit.rewards.several import judge_any


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


NESTED = [
    {
        "prompt": [user(f"{i}+1?")],
        "source": "own",
        "reward_model": {"ground_truth": str(i + 1), "style": "rule"},
        "extra": {"index": i},
    }
    for i in range(3)
]
PATHS = {"problem_column": "prompt", "answer_column": "reward_model.ground_truth"}
PLAIN = {"problem_column": "problem", "answer_column": "answer"}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(path, **settings):
    """Prompts and solutions of training."""
    columns = [settings.get("problem_column"), settings.get("answer_column")]
    dataset = prepare(load_splits(path, text_columns=columns)["train"], **settings)
    return [(row["prompt"], row.get("solution")) for row in dataset]


def evaluated(path, **settings):
    """Prompts and solutions of the evaluation."""
    (task,) = load_tasks(EvalConfig(model="m", tasks=[f"t={path}"], **settings))
    return [
        (problem.prompt if isinstance(problem.prompt, str) else list(problem.prompt), problem.gold)
        for problem in task.problems
    ]


def both(path, **settings):
    """What both see alike."""
    pairs = trained(path, **settings)
    assert evaluated(path, **settings) == pairs
    return pairs


def refused(path, **settings):
    """The message, which both give."""
    with pytest.raises(ValueError, match="`") as in_training:
        trained(path, **settings)
    with pytest.raises(ValueError, match="`") as in_evaluation:
        evaluated(path, **settings)
    assert (
        str(in_evaluation.value).partition(", row")[2]
        == str(in_training.value).replace(": row", ":, row").partition(", row")[2]
    )
    return str(in_training.value)


# ---- fields


def test_paths():
    row = {"a": {"b": {"c": 1}, "b.c": 2, "n": None}, "a.x": 3, "text": '{"k": {"l": 4}}', "plain": "{no"}
    assert read_field(row, "a.b") == {"c": 1}
    assert read_field(row, "a.b.c") == 2  # a name with the dot comes first
    assert read_field(row, "a.x") == 3
    assert read_field(row, "a.n.m") is None
    assert read_field(row, "text.k.l") == 4
    for missing in ("b", "a.c", "plain.x", "a.x.y", "text.m"):
        with pytest.raises(KeyError):
            read_field(row, missing)
    assert paths_of({"b": {"c": 1}, "d": 2}, "a") == ["a.b.c", "a.d"]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "json"])
def test_nested_columns(form, tmp_path):
    path = tmp_path / f"x.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(NESTED), path)
    else:
        path.write_text(json.dumps(NESTED) if form == "json" else "\n".join(map(json.dumps, NESTED)))
    assert both(str(path), **PATHS) == [([user(f"{i}+1?")], str(i + 1)) for i in range(3)]
    assert trained(str(path), answer_column="reward_model.ground_truth") == trained(str(path), **PATHS)
    assert trained(str(path), **{**PATHS, "answer_column": "extra.index"})[2][1] == "2"


def test_streamed_nested_columns(tmp_path):
    rows = [*NESTED, {**NESTED[0], "prompt": []}]
    stream = load_splits(written(tmp_path / "x.jsonl", rows), streaming=True)["train"]
    assert [(row["prompt"], row["solution"]) for row in prepare(stream, **PATHS)] == [
        ([user(f"{i}+1?")], str(i + 1)) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"answer_column": "reward_model"},
            "is a mapping: name a field of it, such as reward_model.ground_truth, reward_",
        ),
        ({"problem_column": "extra"}, "is a mapping: name a field of it, such as extra.index"),
        ({"problem_column": "extra.index"}, "holds a number (0), not text or messages"),
        ({"answer_column": "reward_model.truth"}, "Known: reward_model.ground_truth, reward_model.style"),
        ({"answer_column": "rewardmodel.x"}, "has no column 'rewardmodel.x'"),
    ],
)
def test_fields_that_cannot_be_read(columns, message, tmp_path):
    path = written(tmp_path / "x.jsonl", NESTED)
    settings = {**PATHS, **columns}
    for reading in (trained, evaluated):
        with pytest.raises(ValueError, match="`") as raised:
            reading(path, **settings)
        assert str(raised.value).startswith(f"`{next(iter(columns))}`: ")
        assert message in str(raised.value)


# ---- problems


SHAREGPT = [{"from": "system", "value": "Add."}, {"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        ([user("1+1?")], [user("1+1?")]),
        ([user("1+1?"), assistant("2")], [user("1+1?")]),
        ([user("1+1?"), assistant("I think"), assistant("2")], [user("1+1?")]),
        (SHAREGPT, [{"role": "system", "content": "Add."}, user("1+1?")]),
        ([user([{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}])], [user("1+1?")]),
        (json.dumps([user("1+1?")]), [user("1+1?")]),
        (user("1+1?"), [user("1+1?")]),
        ({"role": ["user", "assistant"], "content": ["1+1?", "2"]}, [user("1+1?")]),
        ([user("a"), assistant("b"), user("1+1?")], [user("a"), assistant("b"), user("1+1?")]),
    ],
)
def test_conversations(value, messages, tmp_path, caplog):
    path = written(tmp_path / "x.jsonl", [{"problem": value, "answer": "2"}] * 2)
    assert both(path, **PLAIN) == [(messages, "2")] * 2
    assert trained(path, **PLAIN) == trained(
        written(tmp_path / "y.jsonl", [{"prompt": value, "answer": "2"}] * 2), answer_column="answer"
    )
    assert ("the answer: it is left out of the prompt" in caplog.text) == (
        "2" in [m["content"] for m in read_problem(value)]
    )


def test_what_is_put_around_a_conversation(tmp_path):
    own = [{"role": "system", "content": "S"}, user("1+1?")]
    path = written(tmp_path / "x.jsonl", [{"problem": [user(" 1+1?")], "answer": "2"}, {"problem": own, "answer": "2"}])
    around = {"prompt_template": "Q: {problem}", "system_prompt": "T"}
    first, second = both(path, **PLAIN, **around)
    assert first[0] == [{"role": "system", "content": "T"}, user("Q: 1+1?")]
    assert second[0] == [{"role": "system", "content": "S"}, user("Q: 1+1?")]  # it keeps its own
    assert both(path, **PLAIN)[0][0] == [user(" 1+1?")]
    # The preset's prompt is for texts: a conversation has its own
    assert evaluated(path, **PLAIN, preset="qwen2.5") == evaluated(path, **PLAIN)
    owned = written(tmp_path / "y.jsonl", [{"problem": own, "answer": "2"}])
    for reading in (trained, evaluated):
        with pytest.raises(ValueError, match="`system_prompt` has no effect: every conversation"):
            reading(owned, **PLAIN, system_prompt="T")
    assert "cannot make one text" in refused(owned, **PLAIN, plain_prompts=True)
    texts = written(tmp_path / "z.jsonl", [{"problem": [user("1+1?"), assistant("2")], "answer": "2"}])
    assert both(texts, **PLAIN, plain_prompts=True, prompt_template="{problem}=") == [("1+1?=", "2")]


def test_settings_without_effect_on_a_prompt_that_is_there():
    messages = Dataset.from_list([{"prompt": [user("1+1?")]}])
    with pytest.raises(ValueError, match="`plain_prompts` has no effect without `problem_column`"):
        prepare(messages, plain_prompts=True)
    assert prepare(Dataset.from_list([{"prompt": "1+1?"}]), plain_prompts=True)[0] == {"prompt": "1+1?"}
    with pytest.raises(ValueError, match="`answer_match` has no effect without `answer_column`"):
        prepare(messages, answer_match="any")


def test_prompts_that_are_there_stay():
    dataset = Dataset.from_list([{"prompt": " 1+1? ", "answer": "2"}])
    assert prepare(dataset)._fingerprint == dataset._fingerprint
    assert prepare(dataset, answer_column="answer")[0]["prompt"] == " 1+1? "
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "1+1?"}]
    images = Dataset.from_list([{"prompt": [user(parts)], "image": "x"}])
    assert prepare(images)[0]["prompt"] == [user(parts)]


def test_answers_within_the_conversation(tmp_path, caplog):
    leaking = {"problem": [user("1+1?"), assistant(r"So \boxed{2}."), user("Sure?")], "answer": "2"}
    other = {"problem": [user("1+1?"), assistant("It is 12"), user("Sure?")], "answer": "2"}
    path = written(tmp_path / "x.jsonl", [other, leaking])
    assert len(both(path, **PLAIN)) == 2
    assert "1 conversations in 'problem' state the answer" in caplog.text
    assert "t: 1 conversations state the answer" in caplog.text
    path = written(tmp_path / "y.jsonl", [leaking])
    for reading in (trained, evaluated):
        with pytest.raises(ValueError, match="states the answer in a turn of the assistant"):
            reading(path, **PLAIN)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "holds a number (3), not text or messages"),
        (2.5, "holds a number (2.5)"),
        (True, "holds a boolean (True)"),
        ([1, 2], "holds a list that is no list of messages ([1, 2])"),
        (["x"], "holds a list that is no list of messages"),
        (str([user("x")]), "a list of messages as Python writes it"),
        ([{"from": "observation", "value": "x"}], "has a message from 'observation', which is no known role"),
        ([{"text": "x"}], "has a message without `role`"),
        ([{"role": "user", "content": 5}], "has a message whose content is a number"),
        ({"a": {"b": "x"}}, "such as problem.a.b"),
    ],
)
def test_what_is_no_problem(value, message, tmp_path):
    assert message in refused(written(tmp_path / "x.jsonl", [{"problem": value, "answer": "2"}]), **PLAIN)
    with pytest.raises(ValueError, match="`problem_column`: row 0 of 'prompt', counted from 0, "):
        prepare(Dataset.from_list([{"prompt": value}]))


@pytest.mark.parametrize(
    "value", [None, [], "", " \n", [user("")], [assistant("2")], [{"role": "system", "content": "s"}]]
)
def test_rows_without_a_problem(value, tmp_path, caplog):
    rows = [
        {"prompt": value, "answer": "2"},
        {"prompt": [user("a")] if isinstance(value, list) else "a", "answer": "3"},
    ]
    path = written(tmp_path / "x.jsonl", rows)
    assert [solution for _, solution in trained(path, answer_column="answer")] == ["3"]
    assert "1 of 2 rows have an empty problem or answer and are left out, the first is row 0" in caplog.text
    with pytest.raises(ValueError, match="'t' has no problem in row 0"):
        evaluated(path, problem_column="prompt")


def test_texts_and_conversations_together(tmp_path):
    path = written(tmp_path / "x.jsonl", [{"prompt": "1+1?", "answer": "2"}, {"prompt": [user("1+1?")], "answer": "2"}])
    with pytest.raises(ValueError, match=r"`prompt` holds texts .* and conversations: set `problem_column: prompt`"):
        trained(path, answer_column="answer")
    assert trained(path, problem_column="prompt", answer_column="answer") == [([user("1+1?")], "2")] * 2


# ---- answers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("70", "70"),
        (" 7\n", "7"),
        (["70"], "70"),
        (["70", None, "70"], "70"),
        ([70], "70"),
        ('["70"]', "70"),
        ("['70']", "70"),
        (r"['\\frac{1}{2}']", r"\frac{1}{2}"),
        ("[2, 3]", "[2, 3]"),  # an interval
        (1e-07, "0.0000001"),
        (27.0, "27"),
        (1e22, "1" + "0" * 22),
        (6.02e23, "602" + "0" * 21),
        (0.5, "0.5"),
        (2**62, str(2**62)),
        (True, "True"),
        (Decimal("1.50"), "1.50"),
        ("2024-05-01", "2024-05-01"),
        ("None", "None"),
    ],
)
def test_an_answer(value, text, tmp_path):
    assert gold_of(read_answers(value), None) == text
    if not isinstance(value, Decimal):
        path = written(tmp_path / "x.jsonl", [{"problem": "a", "answer": value}] * 2)
        assert [solution for _, solution in trained(path, **PLAIN)] == [text] * 2
        assert [solution for _, solution in evaluated(path, **PLAIN)] == [text] * 2


@pytest.mark.parametrize("value", [None, "", " ", [], [None], [""], float("nan"), float("inf")])
def test_no_answer(value):
    with pytest.raises(Missing):
        read_answers(value)


def test_rows_without_an_answer(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_text('{"problem": "a", "answer": NaN}\n{"problem": "b", "answer": 5.5}\n')
    assert [solution for _, solution in trained(str(path), **PLAIN)] == ["5.5"]
    assert "1 of 2 rows" in caplog.text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": "1"}, "is a mapping: name a field of it, such as answer.x"),
        ([["1", "2"], ["3"]], "holds lists of more than texts and numbers"),
        (["2", "3"], "has 2 answers (2, 3): set `answer_match` to `any`"),
        (123456789012345678901234567890, "was rounded when the file was read"),
    ],
)
def test_what_is_no_answer(value, message, tmp_path):
    path = written(tmp_path / "x.jsonl", [{"problem": "a", "answer": value}, {"problem": "b", "answer": value}])
    assert message in refused(path, **PLAIN)


def test_several_answers(tmp_path):
    path = written(tmp_path / "x.jsonl", [{"problem": "a", "answer": ["2", "3"]}, {"problem": "b", "answer": ["7"]}])
    assert [solution for _, solution in trained(path, **PLAIN, answer_match="any")] == [["2", "3"], ["7"]]
    assert [solution for _, solution in evaluated(path, **PLAIN, answer_match="any")] == [["2", "3"], "7"]
    all_of = [solution for _, solution in trained(path, **PLAIN, answer_match="all")]
    assert all_of == [solution for _, solution in evaluated(path, **PLAIN, answer_match="all")] == ["$2, 3$", "7"]
    with pytest.raises(ValueError, match="`answer_match`: unknown value 'both'"):
        prepare(Dataset.from_list(NESTED), **PATHS, answer_match="both")
    with pytest.raises(ValueError, match=r"`answer_match`: unknown value 'An'. Did you mean 'any'"):
        EvalConfig(model="m", tasks=[path], answer_match="An")
    with pytest.raises(ValueError, match="`answer_match` has no effect on the tasks aime24"):
        load_tasks(EvalConfig(model="m", tasks=["aime24"], answer_match="any"))


def test_rewards_of_several_answers():
    texts = [r"$\boxed{2}$", r"$\boxed{3}$", r"$\boxed{5}$", r"$\boxed{3, 2}$", "no"]
    for reward in (judged, accuracy):
        assert reward(texts, solution=[["2", "3"]] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
        assert reward(texts, solution=[gold_of(["2", "3"], "all")] * 5) == [0.0, 0.0, 0.0, 1.0, 0.0]
        assert reward(texts[:2], solution=[["7"], "3"]) == [0.0, 1.0]
    lengths = build_reward("cosine_scaled", 100)(texts, solution=[["2", "3"]] * 5, completion_ids=[[1]] * 5)
    assert [value > 0 for value in lengths] == [True, True, False, False, False]
    assert gold_of(["red", "blue"], "all") == r"\{red, blue\}"
    words = [r"\boxed{blue, Red}", r"\boxed{\text{red and blue}}", r"\boxed{red}", r"\boxed{red, blue, green}"]
    assert judged(words, solution=[r"\{red, blue\}"] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert judged(words[:2], solution=["red, blue"] * 2) == [0.0, 0.0]  # in this order
    assert report_unparsable(Dataset.from_dict({"solution": [["", "1"], ["2", "3"]]}), judged) == 0


def test_votes_of_several_answers():
    texts = [r"\boxed{2}", r"\boxed{3}", r"\boxed{5}", r"\boxed{5.0}", "", r"\boxed{any of: 2 | 3}"]
    first, second, third, fourth, none, forged = judge_any(texts, [["2", "3"]] * 6)
    assert first.vote == second.vote == "any of: 2 | 3"
    assert (third.correct, third.vote, fourth.vote) == (False, "5", "5")
    assert (none.vote, none.correct) == (None, False)
    assert not forged.correct
    assert forged.vote != first.vote
    assert "Nor is it right by another of the 2 solutions" in third.reason
    assert judge_any([r"\boxed{2}"], [["", "2"]])[0].correct
    assert judge_any([r"\boxed{2}"], [["", " "]])[0].correct is None


def test_a_column_solution_of_the_data(caplog):
    rows = Dataset.from_list([{"prompt": "a", "solution": ["1"], "answer": "2"}])
    with pytest.raises(ValueError, match=r"The column `solution` holds list .*: set `answer_column: solution`"):
        check_solutions(rows, [judged])
    check_solutions(rows, [lambda completions, solution, **kwargs: []])
    check_solutions(prepare(rows, answer_column="solution"), [judged])
    assert not caplog.text
    assert prepare(rows, answer_column="answer")[0]["solution"] == "2"
    assert "column `solution` is replaced by what is made of 'answer'" in caplog.text


# ---- files


def test_names_that_trl_uses_itself(caplog):
    rows = [
        {"problem": "a", "completions": ["x"], "prompts": "y", "trainer_state": 1, "completion_ids": [1], "mine": 2}
    ]
    dataset = prepare(Dataset.from_list(rows), problem_column="problem")
    assert dataset.column_names == ["problem", "mine", "prompt"]
    assert "`completion_ids`, `completions`, `prompts`, `trainer_state`" in caplog.text
    caplog.clear()
    assert prepare(Dataset.from_list(rows), problem_column="prompts")[0]["prompt"] == [user("y")]
    assert "`prompts`" not in caplog.text


def test_csv_keeps_its_text(tmp_path):
    answers = ['"1,234"', "007", "1e-07", "True", "1.50", "None", "NA", "nan", "null", "100000000000000000000000"]
    path = tmp_path / "x.csv"
    path.write_text("problem,answer,level\n" + "".join(f"NA,{answer},NA\n" for answer in answers))
    expected = [answer.strip('"') for answer in answers]
    rows = load_splits(str(path), text_columns=["problem", "answer"])["train"]
    assert rows["level"][0] is None
    assert [(prompt[0]["content"], solution) for prompt, solution in trained(str(path), **PLAIN)] == [
        ("NA", answer) for answer in expected
    ]
    assert [solution for _, solution in evaluated(str(path))] == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "problem;answer\na;1,5\n"),
        ("x.tsv", "problem\tanswer\na\t1,5\n"),
        ("x.csv", '\ufeffproblem,answer\na,"1,5"\n'),
        ("x.jsonl", '\ufeff{"problem": "a", "answer": "1,5"}\r\n\r\n'),
        ("x.json", '[\n{"problem": "a",\n"answer": "1,5"}]'),
        ("x.jsonl", '[\n {"problem": "a",\n "answer": "1,5"}\n]'),
    ],
)
def test_forms_of_files(name, content, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    assert both(str(tmp_path / name), **PLAIN, prompt_template="{problem}") == [([user("a")], "1,5")]
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert both(str(packed), **PLAIN, prompt_template="{problem}") == [([user("a")], "1,5")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            '{"problem": "Caf\xe9", "answer": "1"}\n'.encode("cp1252"),
            "line 1 is no UTF-8: save the file as UTF-8",
        ),
        ("x.csv", "problem,answer\nCaf\xe9,1\n".encode("cp1252"), "line 2 is no UTF-8"),
        ("x.jsonl", '{"problem": "a"}'.encode("utf-16"), "line 1 is no UTF-8"),
        ("x.jsonl", b'{"problem": "a"}\n{"problem": "b\n{"problem": "c"}\n', "line 2 is no JSON"),
        ("x.jsonl", b'{"problem": "a"}\n5\n', "line 2 is no object"),
        ("x.jsonl", b'{"problem": "a"}\n{"a":' + b"[" * 100_000 + b"\n", "line 2 is no JSON"),
        ("x.jsonl", b"\n\n", "it holds no rows"),
        ("x.jsonl.gz", b"no", "Not a gzipped file"),
    ],
)
def test_files_that_cannot_be_read(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"`dataset_name`: cannot read .*{message}"):
        load_splits(str(tmp_path / name))


def test_a_folder_of_other_columns(tmp_path):
    written(tmp_path / "train.jsonl", [{"problem": "a", "answer": "1"}])
    written(tmp_path / "test.jsonl", [{"problem": "a", "answer": "1", "level": 3}])
    with pytest.raises(ValueError, match="its files have not the same columns: name one of them"):
        load_splits(str(tmp_path))


@pytest.mark.parametrize("text", ["{path}", "{name}={path}"])
def test_paths_with_an_equals_sign(text, tmp_path):
    (tmp_path / "lr=1e-5").mkdir()
    path = written(tmp_path / "lr=1e-5" / "a=b.jsonl", [{"problem": "a", "answer": "1"}])
    (task,) = load_tasks(EvalConfig(model="m", tasks=[text.format(path=path, name="t")]))
    assert task.name == ("a=b" if text == "{path}" else "t")
    missing = path.replace("a=b", "none")
    with pytest.raises(ValueError, match=r"`tasks`: there is no file .*lr=1e-5/none.jsonl"):
        load_tasks(EvalConfig(model="m", tasks=[missing]))


def test_a_prompt_of_a_template():
    assert make_prompt("a", template="{problem}{problem} {x}", system="s", plain=False) == [
        {"role": "system", "content": "s"},
        user("aa {x}"),
    ]
    image = [user([{"type": "image"}])]
    with pytest.raises(ValueError, match="which no `prompt_template` can surround"):
        make_prompt(image, template="Q: {problem}", system=None, plain=False)
    assert make_prompt(image, template=None, system=None, plain=False) == image


@pytest.mark.parametrize(
    ("answers", "right", "wrong"),
    [
        (["1,000", "2"], "2, 1000", "1, 0, 2"),
        (["$5", "$10"], "10, 5", "5"),
        (["3", "3.0"], "3", "3, 4"),
        (["$x$", "$y$"], "y, x", "x"),
    ],
)
def test_all_of_several_answers(answers, right, wrong):
    gold = gold_of(answers, "all")
    assert judged([rf"\boxed{{{right}}}", rf"\boxed{{{wrong}}}"], solution=[gold] * 2) == [1.0, 0.0]
