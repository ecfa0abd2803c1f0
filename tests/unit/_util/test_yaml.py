"""YAML as users write it."""

import math

import pytest
from support.settings import recipe

from trl_credit._util.yaml import dump, load_mapping, read_mapping


NAN, INF = math.nan, math.inf

BASE = "output_dir: out\nuse_cpu: true\nbf16: false\n"


# YAML


def test_texts_stay_texts(tmp_path):
    found = recipe(
        tmp_path,
        """
        eval_strategy: no
        system_prompt: off
        run_name: 007
        model_revision: 1e10
        project: yes
        report_to: none
        learning_rate: 1e-6
        reward_weights: [5e-1, 1]
        trim_padding: no
        log_completions: on
        dataloader_pin_memory: off
        dynamic_sampling: null
        max_steps: 1_000
        logging_steps: 1e1
        """,
    )
    assert found["eval_strategy"] == "no"
    assert found["system_prompt"] == "off"
    assert (found["run_name"], found["model_revision"], found["project"]) == ("007", "1e10", "yes")
    assert found["learning_rate"] == 1e-6
    assert found["reward_weights"] == [0.5, 1]
    assert (found["trim_padding"], found["log_completions"], found["dataloader_pin_memory"]) == (False, True, False)
    assert (found["max_steps"], found["logging_steps"]) == (1000, 10)


def test_words_among_arguments_of_other_code_are_booleans(tmp_path):
    found = recipe(
        tmp_path,
        """
        chat_template_kwargs: {enable_thinking: no, text: "no", deep: [{a: off}, yes]}
        gradient_checkpointing_kwargs: {use_reentrant: off}
        accelerator_config: {split_batches: no}
        resume_from_checkpoint: no
        reward_funcs: [{name: x, label: no}]
        eval: {tasks: [no], chat_template_kwargs: {enable_thinking: on}}
        """,
    )
    assert found["chat_template_kwargs"] == {"enable_thinking": False, "text": "no", "deep": [{"a": False}, True]}
    assert found["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert found["accelerator_config"].split_batches is False
    assert found["resume_from_checkpoint"] == "false"
    assert found["reward_funcs"] == [{"name": "x", "label": False}]
    assert found["eval"] == {"tasks": ["no"], "chat_template_kwargs": {"enable_thinking": True}}


def test_written_yaml_is_read_as_it_was():
    value = {
        "a": "no",
        "b": "1e-6",
        "c": 1e-6,
        "d": "007",
        "e": "true",
        "f": "null",
        "g": None,
        "h": INF,
        "i": ["~", "off", 1],
    }
    assert load_mapping(dump(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("credit:\n\tmethod: gcpo\n", "Line 2 begins with a tab: indent with spaces"),
        ("a: 1\ncredit:\u00a0gcpo\n", "Line 2 has a non-breaking space: write a plain one"),
    ],
)
def test_what_nobody_sees_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        load_mapping(text)


def test_files_of_windows_are_read():
    text = "\ufeffcredit: {method: gcpo}\r\n# tab\there\r\nmax_steps: 3\r\n"
    assert load_mapping(text.removeprefix("\ufeff")) == {"credit": {"method": "gcpo"}, "max_steps": 3}
    with pytest.raises(ValueError, match=r"not valid YAML: (?!.*(tab|non-breaking))"):
        load_mapping("a: 1\n# \u00a0\nb: [\n")


def test_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbfcredit: gcpo\r\n")
    assert read_mapping(tmp_path / "recipe.yaml") == {"credit": "gcpo"}
