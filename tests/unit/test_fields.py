"""Problems and answers as users' files hold them, read alike by training, evaluation and inspection."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from support.fields import both, evaluated, trained, user, written

from trl_credit.data import check_solutions, load_splits, prepare
from trl_credit.evaluation import EvalConfig
from trl_credit.evaluation.tasks import load_tasks
from trl_credit.fields import Missing, gold_of, make_prompt, paths_of, read_answers, read_field, read_problem
from trl_credit.rewards import judged


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
    assert ("the answer: that turn is left out of the prompt" in caplog.text) == (
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
        ([1, 2], "holds a list, but not of messages ([1, 2])"),
        (["x"], "holds a list, but not of messages"),
        (str([user("x")]), "a list of messages in Python syntax"),
        ([{"from": "observation", "value": "x"}], "has a message from 'observation', which is not a known role"),
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
    assert "1 of 2 rows have an empty problem or answer and are left out (first: row 0)" in caplog.text
    with pytest.raises(ValueError, match="'t' has no problem in row 0"):
        evaluated(path, problem_column="prompt")


def test_texts_and_conversations_together(tmp_path):
    path = written(tmp_path / "x.jsonl", [{"prompt": "1+1?", "answer": "2"}, {"prompt": [user("1+1?")], "answer": "2"}])
    with pytest.raises(
        ValueError, match=r"`prompt` holds both texts .* and conversations: set `problem_column: prompt`"
    ):
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
        (r'["\frac{1}{2}"]', r"\frac{1}{2}"),  # with single backslashes, of which `\f` would be a form feed
        ("[2, 3]", "[2, 3]"),  # an interval
        ("48 / 2 = <<48/2=24>>24 clips\n48 + 24 = 72\n#### 72", "72"),
        ("#### 1,234\n", "1,234"),
        ("#### 5 and more\nthan that", "#### 5 and more\nthan that"),
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


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (r'["12\n"]', ["12"]),
        (r'["a\nb", "c\td"]', ["a\nb", "c\td"]),
        (r'["say \"hi\"\nthere"]', ['say "hi"\nthere']),
        (r'["\frac{1}{2}\n", "\nu", "\neq 3", "\theta"]', [r"\frac{1}{2}", r"\nu", r"\neq 3", r"\theta"]),
        (r'["\beta \"x\""]', [r'\beta "x"']),
        (r'["\\text{a}\nb"]', ["\\text{a}\nb"]),
        (r"['\text{no}', '\sqrt{2}']", [r"\text{no}", r"\sqrt{2}"]),
    ],
)
def test_lists_with_latex_or_control_characters(text, answers):
    assert read_answers(text) == answers


def test_headings_are_no_final_lines():
    assert read_answers("6 * 12 = 72\n#### 72") == ["72"]
    assert read_answers("##### 5") == ["##### 5"]


def test_roles_in_another_case():
    assert read_problem([{"role": "User", "content": "hi"}]) == [user("hi")]
    assert read_problem([{"from": "Human", "value": "hi"}]) == [user("hi")]


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


def test_a_column_solution_of_the_data(caplog):
    rows = Dataset.from_list([{"prompt": "a", "solution": ["1"], "answer": "2"}])
    with pytest.raises(ValueError, match=r"The column `solution` holds list .*: set `answer_column: solution`"):
        check_solutions(rows, [judged])
    check_solutions(rows, [lambda completions, solution, **kwargs: []])
    check_solutions(prepare(rows, answer_column="solution"), [judged])
    assert not caplog.text
    assert prepare(rows, answer_column="answer")[0]["solution"] == "2"
    assert "column `solution` is replaced by values built from 'answer'" in caplog.text


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
    with pytest.raises(ValueError, match="which `prompt_template` cannot wrap"):
        make_prompt(image, template="Q: {problem}", system=None, plain=False)
    assert make_prompt(image, template=None, system=None, plain=False) == image
