"""Policy files: what is read, what is refused, and that the digest covers what decides a graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdeploy.core.errors import ConfigError
from segdeploy.graph import policy as policy_module
from segdeploy.graph.policy import (
    CHOICES,
    Override,
    Policy,
    load_policy,
    parse_policy,
    policy_text,
    shipped_policy,
)

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(p.stem for p in (Path(policy_module.__file__).parent / "policies").glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_names_every_group_and_its_evidence_is_there(name: str) -> None:
    policy = shipped_policy(name)
    assert policy.name == name
    assert set(policy.groups) == set(CHOICES)
    assert policy.description
    if policy.evidence:
        assert (ROOT / policy.evidence["results"]).is_file()


@pytest.mark.parametrize("name", sorted({*SHIPPED} - {"all"}))
def test_a_shipped_policy_gives_a_reason_for_every_group(name: str) -> None:
    policy = shipped_policy(name)
    said = {group: policy.choose("n", group)[1] for group in CHOICES}
    assert all(len(why.split()) > 4 for why in said.values()), said


def test_a_pad_has_words_of_its_own_and_a_file_speaks_for_its_whole_group() -> None:
    usual = shipped_policy("onnx")
    assert usual.choose("n", "resize", "Resize")[1] == usual.choose("n", "resize")[1]
    choice, why = usual.choose("n", "resize", "Pad")
    assert choice == "float"
    assert "interpolates none" in why
    mine = parse_policy("[reasons]\nresize = 'mine'", "mine", "mine", base="onnx")
    assert mine.choose("n", "resize", "Pad") == ("float", "mine")
    other = parse_policy("[groups]\nresize = 'int8'", "mine", "mine", base="onnx")
    assert other.choose("n", "resize", "Pad") == ("int8", "")


def test_all_is_int8_everywhere_and_a_backend_without_a_file_gets_the_default() -> None:
    assert set(load_policy("all", "onnx").groups.values()) == {"int8"}
    assert load_policy("default", "a_plug_in") == shipped_policy("default")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("groups = [", "not TOML"),
        ("[group]\nresize = 'int8'", "unknown keys: group"),
        ("[groups]\nrelu = 'int8'", "unknown groups: relu"),
        ("[groups]\nresize = 'weights'", "no choice for resize"),
        ("[groups]\nresize = 8", "Expected `str`"),
        ("[reasons]\nrelu = 'x'", "unknown groups: relu"),
        ("[[overrides]]\nnodes = 'a'", "missing required field `choice`"),
        ("[[overrides]]\nnodes = 'a'\nchoice = 'fp4'", "fp4"),
    ],
)
def test_what_is_no_policy_is_refused(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_policy(str(file), "onnx")


def test_a_missing_file_is_told_with_what_could_be_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(str(tmp_path / "none.toml"), "onnx")
    assert "none.toml" in caught.value.message
    assert "segdeploy tune" in caught.value.hint


def test_groups_left_out_are_as_in_the_default() -> None:
    policy = parse_policy("[groups]\nresize = 'int8'", "mine", "mine")
    assert policy.groups == {**shipped_policy("default").groups, "resize": "int8"}


def test_a_shipped_reason_goes_with_the_choice_that_it_is_for() -> None:
    usual = shipped_policy("tensorrt").reasons
    groups = "[groups]\nclassifier = 'int8'\nstem = 'int8'\npooled = 'weights'\n"
    policy = parse_policy(f"{groups}[reasons]\nstem = 'mine'", "mine", "mine", base="tensorrt")
    assert policy.choose("n", "classifier") == ("int8", "")
    assert policy.choose("n", "stem") == ("int8", "mine")
    changed = {"classifier", "stem", "stem_residual"}  # The last is a part of the second.
    kept = {g: why for g, why in usual.items() if g not in changed}
    assert policy.reasons == {**kept, "stem": "mine"}


def test_the_digest_covers_choices_and_not_words() -> None:
    base = shipped_policy("default")
    assert replace(base, name="x", description="y", reasons={}, evidence={"a": 1}).digest == (
        base.digest
    )
    changed = [
        replace(base, groups={**base.groups, "gate": "int8"}),
        replace(base, overrides=(Override("a", "int8"),)),
        replace(base, overrides=(Override("a", "float"),)),
    ]
    assert len({base.digest, *(p.digest for p in changed)}) == 4


def test_the_last_override_that_matches_wins() -> None:
    overrides = (Override("n_*", "float"), Override("n_1", "weights", "tried"))
    policy = replace(shipped_policy("default"), overrides=overrides)
    assert policy.choose("n_1", "pointwise") == ("weights", "tried")
    assert policy.choose("n_2", "pointwise")[0] == "float"
    assert policy.choose("m", "pointwise")[0] == "int8"


_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
_NUMBERS = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.one_of(_WORDS, _NUMBERS, st.booleans(), st.lists(_WORDS, max_size=3))


@given(
    groups=st.fixed_dictionaries({g: st.sampled_from(c) for g, c in CHOICES.items()}),
    words=st.lists(_WORDS, min_size=3, max_size=3),
    trials=st.lists(st.dictionaries(st.sampled_from(["ratio", "change"]), _VALUES), max_size=3),
    versions=st.dictionaries(_WORDS, _WORDS, max_size=3),
)
def test_a_policy_is_read_as_it_was_written(
    groups: dict[str, str], words: list[str], trials: list[dict[str, object]],
    versions: dict[str, str],
) -> None:  # fmt: skip
    policy = Policy(
        "mine", groups, description=words[0], reasons={"gate": words[1]},
        overrides=(Override(words[2], "int8", words[0]),),
        evidence={"versions": versions, "size": [1, 2], **({"trials": trials} if trials else {})},
    )  # fmt: skip
    assert parse_policy(policy_text(policy), "mine", "mine") == policy


def test_a_file_begins_with_the_policy_of_its_backend(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[groups]\nresize = "int8"\n', encoding="utf-8")
    for backend in ("onnx", "openvino", "tensorrt"):
        usual, mine = shipped_policy(backend), load_policy(str(file), backend)
        assert mine.activations == usual.activations
        assert mine.groups == usual.groups | {"resize": "int8"}
    assert load_policy("tensorrt", "onnx") == shipped_policy("tensorrt")
    with pytest.raises(ConfigError, match="is empty"):
        load_policy("", "onnx")


def test_a_file_older_than_a_group_means_what_it_meant() -> None:
    old = parse_policy('[groups]\nstem = "int8"\n', "old", "old", base="onnx")
    assert old.choose("n", "stem_residual") == ("int8", "")
    new = parse_policy('[groups]\nstem = "int8"\nstem_residual = "float"\n', "n", "n", base="onnx")
    assert new.groups["stem_residual"] == "float"
    assert parse_policy("", "empty", "empty", base="onnx").groups["stem_residual"] == "float"
