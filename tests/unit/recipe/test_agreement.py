"""One recipe for all processes."""

import pytest
from helpers import ROOT
from support.recipes import parsed

from trl_credit.recipe import agreement
from trl_credit.recipe.agreement import check_agreement, raise_differences, together


class FourProcesses:
    """In the place of accelerate's state: this one is process 1."""

    num_processes, process_index = 4, 1


@pytest.fixture
def four(monkeypatch):
    """Four processes, of which the others send what is in the list that is returned; by default the same as this one."""
    others = []
    monkeypatch.setattr(agreement, "PartialState", FourProcesses)
    monkeypatch.setattr(agreement, "gather_object", lambda own: others or own * 4)
    return others


def test_the_same_recipe_agrees(four):
    check_agreement(parsed(ROOT / "recipes" / "quickstart.yaml"))


def test_a_recipe_as_text_is_the_same_each_time(monkeypatch):
    """Addresses in a `repr` would differ between processes."""
    sent = []
    monkeypatch.setattr(agreement, "PartialState", FourProcesses)
    monkeypatch.setattr(agreement, "gather_object", lambda own: sent.extend(own) or own)
    for _ in range(2):
        check_agreement(parsed(ROOT / "recipes" / "qwen2.5-7b" / "gcpo.yaml"))
    assert sent[0] == sent[1]
    assert not [name for name, text in sent[0].items() if " object at 0x" in text]
    assert {"`credit`", "`seed`", "`reward_funcs`", "the version of trl-credit", "the version of torch"} <= sent[
        0
    ].keys()
    assert not {"`output_dir`", "`hub_token`", "`vllm_server_host`"} & sent[0].keys()


def test_fields_that_may_differ_exist():
    assert parsed(ROOT / "recipes" / "quickstart.yaml").fields().keys() >= agreement._OWN


def test_differences_name_the_field_and_the_processes():
    same = {"`seed`": "0", "`credit`": "'gcpo'"}
    settings = [same, same, *[{**same, "`credit`": "'dgpo'"}] * 3, {"`seed`": "1", "`credit`": "'dgpo'"}]
    with pytest.raises(ValueError, match=r"The processes of this run differ: ") as caught:
        raise_differences(settings)
    message = str(caught.value)
    assert "`credit` is 'gcpo' on process 0, but 'dgpo' on processes 2-5" in message
    assert "`seed` is 0 on process 0, but 1 on process 5" in message
    assert "on every machine" in message


def test_a_field_that_one_version_lacks():
    with pytest.raises(ValueError, match="`new` is unknown on process 0, but 1 on processes 1, 3"):
        raise_differences([{}, {"`new`": "1"}, {}, {"`new`": "1"}])


def test_an_error_of_one_process_is_every_ones(four):
    assert together(lambda: "done") == "done"
    four += [(0, "head", None), (1, "here", None), (2, "there", "no such file"), (3, "there", "no such file")]
    with pytest.raises(ValueError, match="process 2, on there: no such file"):
        together(lambda: "done")


def test_an_error_of_its_own_stays_as_it_is(four):
    def fails():
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match=r"^gone$"):
        together(fails)
