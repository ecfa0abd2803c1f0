"""Datasets from files, folders and generators."""

import contextlib
import gzip
import json

import pytest
from datasets import Dataset, IterableDataset
from PIL import Image
from support.fields import both, evaluated, trained, user, written
from support.train import write

from trl_credit.data import _folder_options, load_splits, prepare, report_bare_latex, report_unparsable
from trl_credit.rewards import accuracy, judged


PLAIN = {"problem_column": "problem", "answer_column": "answer"}


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
        ("x.csv", '\n\nproblem,answer\na,"1,5"\n'),
        ("x.csv", '"problem","answer"\n"1","a","1,5"\n'),  # as R writes it, with the rows' numbers
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
    ("rows", "line"),
    [
        ("problem,answer,source\nq,5,gsm\nWhat is 500+734?,1,234,gsm\n", "line 3 has 4 fields, but the header 3"),
        ("problem,answer\nWhat is 500+734?,1,234\n", "line 2 has 3 fields, but the header 2"),
        ('problem,answer\n"He said \\"hi\\", what?",5\n', "line 2 has 3 fields"),
    ],
)
def test_rows_wider_than_the_header_are_errors(rows, line, tmp_path):
    (tmp_path / "x.csv").write_text(rows)
    with pytest.raises(ValueError, match=line):
        load_splits(str(tmp_path / "x.csv"), text_columns=["problem", "answer"])


def test_headers_over_two_lines(tmp_path):
    (tmp_path / "x.csv").write_text('"problem\nin English",answer\na,007\n')
    columns = {"problem_column": "problem\nin English", "answer_column": "answer"}
    assert [solution for _, solution in trained(str(tmp_path / "x.csv"), **columns)] == ["007"]


def test_a_comma_at_the_end_of_every_row(tmp_path):
    (tmp_path / "x.csv").write_text('problem,answer\n"q1",5,\n"q2",6,\n')
    assert [solution for _, solution in trained(str(tmp_path / "x.csv"), **PLAIN)] == ["5", "6"]


def test_folders_of_csv_files_keep_their_text(tmp_path):
    (tmp_path / "train.csv").write_text("problem,answer\na,007\nb,1.50\nc,NA\n")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "train.csv.metadata").write_text("etag")  # as the hub's client leaves it
    assert [solution for _, solution in trained(str(tmp_path), **PLAIN)] == ["007", "1.50", "NA"]


def test_folders_of_packed_csv_files_keep_their_text(tmp_path):
    for part, answer in (("0", "007"), ("1", "1.50")):
        (tmp_path / f"train-{part}.csv.gz").write_bytes(gzip.compress(f"problem,answer\na,{answer}\n".encode()))
    assert [solution for _, solution in trained(str(tmp_path), **PLAIN)] == ["007", "1.50"]


def test_folders_of_csv_files_of_other_columns_keep_their_text(tmp_path):
    (tmp_path / "test.csv").write_text("level,other\nNA,1\n")
    (tmp_path / "train.csv").write_text("problem,answer\na,007\n")
    options = _folder_options(tmp_path, ["problem", "answer"])
    assert set(options["converters"]) == {"problem", "answer"}
    assert set(options["na_values"]) == {"level", "other"}


def test_folders_of_csv_files_with_several_separators(tmp_path):
    (tmp_path / "a.csv").write_text("problem,answer\na,007\n")
    (tmp_path / "b.csv").write_text("problem;answer\na;007\n")
    with pytest.raises(ValueError, match=r"'b\.csv' separates columns by ';', 'a\.csv' by ','"):
        load_splits(str(tmp_path), text_columns=["problem", "answer"])


def test_tables_beside_images_are_those_of_the_images(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,problem,answer\na.png,What?,007\n")
    rows = load_splits(str(tmp_path), text_columns=["problem", "answer"])["train"]
    assert set(rows.column_names) == {"image", "problem", "answer"}


PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Find x."}]}]
TEXTS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]


@pytest.mark.parametrize("stream", [False, True])
def test_texts_beside_messages_in_parts(stream, tmp_path):
    dataset = Dataset.from_dict({"prompt": [json.dumps(PARTS), json.dumps(TEXTS)]})
    dataset = dataset.to_iterable_dataset() if stream else dataset
    rows = [row["prompt"] for row in prepare(dataset, problem_column="prompt", system_prompt="Think.")]
    contents = [[part for message in row for part in message["content"]] for row in rows]
    assert [[part.get("text") for part in row if part["type"] == "text"] for row in contents] == [
        ["Think.", "Find x."],
        ["Be short.", "1+1?", "2", "2+2?"],
    ]


def test_a_stream_may_state_the_answer_later_than_in_its_first_row(caplog):
    rows = [
        {"prompt": [user("x")], "answer": "1"},
        {"prompt": [user("y"), {"role": "assistant", "content": "It is 7"}], "answer": "7"},
        {"prompt": [user("a"), {"role": "assistant", "content": "It is 7"}, user("Sure?")], "answer": "7"},
    ]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    found = [[message["role"] for message in row["prompt"]] for row in prepare(stream, answer_column="answer")]
    assert found == [["user"], ["user"], ["user", "assistant", "user"]]
    assert caplog.text.count("states the answer in a turn of the assistant before") == 1


def test_slots_that_nothing_fills():
    dataset = Dataset.from_list([{"problem": "44, 19", "target": 25}])
    with pytest.raises(ValueError, match=r"has the slot \{target\}, but only \{problem\} is filled"):
        prepare(dataset, problem_column="problem", prompt_template="Using {problem}, make {target}.")
    prepare(dataset, problem_column="problem", prompt_template="Using {problem}, make {other}.")


def test_answers_that_nobody_can_state(caplog):
    tests = '{"inputs": ["1"], "outputs": ["2"]}'
    assert report_unparsable(Dataset.from_dict({"solution": ["proof", tests, "5"]}), judged) == 0
    assert "2 of the first 3 answers are none that a completion could state, for example 'proof'" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            '{"problem": "Caf\xe9", "answer": "1"}\n'.encode("cp1252"),
            "line 1 is not UTF-8: save the file as UTF-8",
        ),
        ("x.csv", "problem,answer\nCaf\xe9,1\n".encode("cp1252"), "line 2 is not UTF-8"),
        ("x.jsonl", '{"problem": "a"}'.encode("utf-16"), "line 1 is not UTF-8"),
        ("x.jsonl", b'{"problem": "a"}\n{"problem": "b\n{"problem": "c"}\n', "line 2 is not JSON"),
        ("x.jsonl", b'{"problem": "a"}\n5\n', "line 2 is not an object"),
        ("x.jsonl", b'{"problem": "a"}\n{"a":' + b"[" * 100_000 + b"\n", "line 2 is not JSON"),
        ("x.jsonl", b'["a", "1"]\n["b", "2"]\n', "line 1 is not an object"),
        ("x.jsonl", b"{}\n{}\n", "it has no rows"),
        ("x.jsonl", b"\n\n", "it has no rows"),
        ("x.csv", b"problem,answer\n", "it has no rows"),
        ("x.json", b"[]", "it has no rows"),
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
    with pytest.raises(ValueError, match="its files have different columns: name one of them"):
        load_splits(str(tmp_path))


ROWS = [{"problem": f"{i}+{i}?", "answer": str(2 * i), "extra": i} for i in range(12)]


# Data


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_files(name, tmp_path):
    splits = load_splits(write(tmp_path / name))
    assert splits["train"].to_list() == ROWS


def test_saved_folder(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert load_splits(str(tmp_path / "saved"))["train"].to_list() == ROWS


def test_generated_tasks():
    first = load_splits("reasoning_gym:chain_sum", generated_size=5, generated_config={"max_terms": 2}, seed=1)["train"]
    assert first.column_names == ["problem", "answer"]
    assert len(first) == 5
    again = load_splits("reasoning_gym:chain_sum", generated_size=5, generated_config={"max_terms": 2}, seed=1)["train"]
    other = load_splits("reasoning_gym:chain_sum", generated_size=5, generated_config={"max_terms": 2}, seed=2)["train"]
    assert first.to_list() == again.to_list() != other.to_list()
    assert load_splits("trl_credit:arithmetic", generated_size=3)["train"].column_names == ["prompt", "answer"]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("missing.jsonl", None, "there is no file 'missing.jsonl'"),
        ("./nothing", None, "there is no file './nothing'"),
        ("reasoning_gym:chain_sums", None, "no task 'chain_sums'. Did you mean 'chain_sum'"),
        ("reasoning_gym:chain_sum", {"terms": 3}, "generated_dataset_config"),
        ("trl_credit:arithmetics", None, "Did you mean 'trl_credit:arithmetic'"),
        ("trl_credit:arithmetic", {"terms": 3}, "generated_dataset_config"),
    ],
)
def test_bad_sources(name, config, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"`(dataset_name|generated_dataset_config)`") as raised:
        load_splits(name, generated_config=config)
    assert message in str(raised.value)


def test_unreadable_file(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"problem": "1", \n nonsense')
    with pytest.raises(ValueError, match=r"cannot read '.*broken.jsonl'"):
        load_splits(str(tmp_path / "broken.jsonl"))
    (tmp_path / "data.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"must end in one of \.json, \.jsonl, \.parquet, \.csv"):
        load_splits(str(tmp_path / "data.xlsx"))


def test_data_in_a_folder_of_somebody_else(tmp_path, monkeypatch):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "data")
    dataset = Dataset.load_from_disk(tmp_path / "data")
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    monkeypatch.setattr("os.access", lambda path, mode: False)
    prepared = prepare(dataset, problem_column="problem", answer_column="answer")
    assert len(prepared) == len(ROWS)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before


def test_prepare():
    dataset = prepare(
        Dataset.from_list(ROWS),
        problem_column="problem",
        answer_column="answer",
        system_prompt="Be right.",
        prompt_template="Solve {problem} with {braces}",
    )
    assert dataset[3] == {
        **ROWS[3],
        "prompt": [
            {"role": "system", "content": "Be right."},
            {"role": "user", "content": "Solve 3+3? with {braces}"},
        ],
        "solution": "6",
    }
    plain = prepare(Dataset.from_list(ROWS), problem_column="problem", plain_prompts=True)
    assert plain[1]["prompt"] == "1+1?"
    assert "solution" not in plain.column_names


def test_prepare_leaves_out_empty_rows_and_says_so(caplog):
    rows = [*ROWS[:2], {"problem": "x", "answer": " ", "extra": 0}, {"problem": "", "answer": "1", "extra": 0}]
    dataset = prepare(Dataset.from_list(rows), problem_column="problem", answer_column="answer")
    assert len(dataset) == 2
    assert (
        "2 of 4 rows have an empty problem or answer and are left out (first: row 2); without an answer in 'answer': 1."
        in caplog.text
    )
    both = {"problem": "", "answer": None, "extra": 0}
    for kept, message in (
        (rows[2:], "empty `problem` or `answer`: see `problem_column`"),
        ([rows[2], both], "empty `answer`: see `answer_column`"),
        (rows[3:], "empty `problem`: see `problem_column`"),
    ):
        with pytest.raises(ValueError, match=f"Every row of the dataset has an {message}"):
            prepare(Dataset.from_list(kept), problem_column="problem", answer_column="answer")


def test_empty_rows_of_a_stream_are_said_once(caplog):
    rows = [{"problem": "x", "answer": ""}, *ROWS[:2], {"problem": "", "answer": "1"}, {"problem": "y", "answer": None}]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    assert len(list(prepare(stream, problem_column="problem", answer_column="answer"))) == 2
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "A row of the stream is left out, as will be others like it: its 'answer' is empty.",
        "A row of the stream is left out, as will be others like it: its 'problem' is empty.",
    ]


def test_an_unreadable_row_of_a_stream_is_left_out_and_said(caplog):
    rows = ["x", 3.5, "y", 4.5]
    stream = IterableDataset.from_generator(lambda: ({"problem": problem} for problem in rows))
    assert [row["problem"] for row in prepare(stream, problem_column="problem")] == ["x", "y"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "as will be others like it: `problem_column`: a row of 'problem' holds a number (3.5), not text" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem_column": "problm"}, "`problem_column`: the dataset has no column 'problm'. Did you mean 'problem'"),
        ({"problem_column": "problem", "answer_column": "x"}, "`answer_column`: the dataset has no column 'x'"),
        ({}, "Known: answer, extra, problem. Set `problem_column` to the column"),
        ({"problem_column": "problem", "prompt_template": "Solve"}, "must contain the slot {problem}"),
        ({"problem_column": "problem", "plain_prompts": True, "system_prompt": "x"}, "has no effect"),
    ],
)
def test_prepare_errors(settings, message):
    with pytest.raises(ValueError, match="`") as raised:
        prepare(Dataset.from_list(ROWS), **settings)
    assert message in str(raised.value)


def test_system_prompt_without_effect():
    with pytest.raises(ValueError, match="`system_prompt` has no effect without `problem_column`"):
        prepare(Dataset.from_list([{"prompt": "1"}]), system_prompt="x")


def test_unparsable_answers_are_reported(caplog):
    assert report_unparsable(Dataset.from_dict({"solution": ["1", "sorry", r"\frac{1}{2}"]}), accuracy) == 1
    assert "1 of the first 3 answers do not parse" in caplog.text
    assert "'sorry'" in caplog.text
    with pytest.raises(ValueError, match="None of the first 2 answers parses"):
        report_unparsable(Dataset.from_dict({"solution": ["sorry", "what"]}), accuracy)
    assert report_unparsable(Dataset.from_dict({"solution": ["p - q", "2\\sqrt{3}", "$"]}), judged) == 1
    assert "`judged` will not score" in caplog.text


def test_bare_latex_is_reported(caplog):
    """`accuracy` takes 2 for the square root of 12; `judged` does not."""
    solutions = [r"2\sqrt{3}", r"$\frac{1}{2}$", "7", r"\boxed{\pi}"]
    assert report_bare_latex(Dataset.from_dict({"solution": solutions})) == 1
    assert r"1 of the first 4 answers are LaTeX without dollars, for example '2\\sqrt{3}'" in caplog.text
    assert accuracy([r"\boxed{2}"], [r"2\sqrt{3}"]) == [1.0]
    assert judged([r"\boxed{2}", r"\boxed{\sqrt{12}}"], [r"2\sqrt{3}"] * 2) == [0.0, 1.0]


def test_files_that_say_what_is_wrong_with_them(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("problem,answer,answer\n1+1,2,3\n")
    with pytest.raises(ValueError, match="it has 2 columns 'answer': rename or remove all but one"):
        load_splits(str(path), text_columns=["problem", "answer"])
    path = tmp_path / "wide.jsonl"
    path.write_text('{"problem": "1+1"}\n', encoding="utf-16")
    with pytest.raises(ValueError, match="iconv -f UTF-16"):
        load_splits(str(path))


@pytest.mark.parametrize("error", [ValueError("bad"), OSError("disk full"), TypeError("x")])
def test_an_error_of_the_main_process_comes_after_the_others_may_go_on(monkeypatch, error):
    """Else they would wait for it in `main_process_first`."""
    left = []

    @contextlib.contextmanager
    def first(self):
        yield
        left.append(True)  # not reached by an error, like accelerate's

    def prepare_rows(dataset, reader):
        raise error

    monkeypatch.setattr("trl_credit.data.PartialState.main_process_first", first)
    monkeypatch.setattr("trl_credit.data._prepare_rows", prepare_rows)
    with pytest.raises(type(error)):
        prepare(Dataset.from_dict({"problem": ["a"], "answer": ["1"]}), **PLAIN)
    assert left == [True]
