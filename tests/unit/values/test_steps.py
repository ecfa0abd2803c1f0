"""Where completions are cut."""

import pytest

from trl_credit.values.steps import check_every, segment_ends


def test_every_so_many_tokens():
    pieces = list("abcdefg")
    assert segment_ends(pieces, 1) == [1, 2, 3, 4, 5, 6, 7]
    assert segment_ends(pieces, 3) == segment_ends(pieces, "3") == [3, 6, 7]
    assert segment_ends(pieces, 7) == segment_ends(pieces, 100) == [7]
    assert segment_ends([], 3) == segment_ends([], "step") == []


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("83+48=131;131+14=145;#145", ["83+48=131;", "131+14=145;", "#145"]),
        ("It is 3.5 m. So half!\nDone", ["It is 3.5 m.", " So half!\n", "Done"]),
        ("One\n\n  two \n three", ["One\n\n  ", "two \n ", "three"]),
        ('He said "no." Then?) Yes.', ['He said "no."', " Then?)", " Yes."]),
        ("so;\nthen", ["so;\n", "then"]),
        ("对。错", ["对。", "错"]),
        ("no end", ["no end"]),
    ],
)
def test_steps(text, segments):
    ends = segment_ends(list(text), "step")
    assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == segments


def test_a_token_that_an_end_falls_into_is_not_cut():
    pieces = ["one", ".\nt", "wo", "", ";th", "ree"]
    assert segment_ends(pieces, "step") == [2, 5, 6]
    assert segment_ends(pieces, "o") == [1, 3, 6]
    assert segment_ends(pieces, "x*") == [6]  # matches nothing but emptiness


@pytest.mark.parametrize("every", [0, -2, "0", "-1", True, 1.5, "", None, "(", "[a"])
def test_what_cannot_cut(every):
    with pytest.raises(ValueError, match="`every`"):
        check_every(every)
