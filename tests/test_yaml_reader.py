import math
import random
import string
from pathlib import Path

import pytest

from nanovlm import ConfigError
from nanovlm.yaml_reader import dump_yaml, parse_yaml, read_yaml


def one(text: str):
    return parse_yaml(f"key: {text}", "here")["key"]


def message(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "here")
    return str(caught.value)


def read_error(file) -> str:
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E3", 2000.0),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+3.25", 3.25),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("12", 12),
        ("-7", -7),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),  # octal in YAML 1.1
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_a_scalar_is_what_yaml_1_2_says(text, value):
    assert one(text) == value
    assert type(one(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    ["on", "off", "yes", "No", "y", "tRuE", "1_000", "12:30:45", "0b101", "2024-01-31", "e5", ".", "0o9", "1e", "nan"],
)
def test_every_other_plain_scalar_is_a_word(text):
    assert one(text) == text


def test_nan_is_a_number():
    assert math.isnan(one(".nan"))


@pytest.mark.parametrize("text", ["'1e-4'", '"true"', "'null'", '""'])
def test_a_quoted_scalar_is_a_word(text):
    assert one(text) == text[1:-1]


def test_keys_are_read_by_the_same_rules():
    assert list(parse_yaml("{on: 1, yes: 2}", "here")) == ["on", "yes"]


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [("a: 1\nb: 2\na: 3", 3, "a"), ("a:\n  b: 1\n  'b': 2", 3, "b"), ("x: [{y: 1,\n y: 2}]", 2, "y")],
)
def test_a_key_that_stands_twice_is_an_error_at_the_second(text, line, key):
    assert f"here, line {line}, column" in message(text)
    assert f"the key {key!r} stands twice" in message(text)


def test_a_merge_key_is_no_key():
    """YAML 1.1's, which PyYAML would merge: elsewhere it would read as an option of this name."""
    for text in ("a: &a {b: 1}\nc: {<<: *a}", "a: &a {b: 1}\nc:\n  <<: [*a]"):
        assert message(text).startswith("here, line ")
        assert message(text).endswith("YAML 1.2 has no merge key <<: write out what it stands for")
    assert parse_yaml('{"<<": 1}', "here") == {"<<": 1}


def test_what_an_alias_repeats_stands_in_both_places():
    assert parse_yaml("a: &a [{name: x}]\nb: *a", "here") == {"a": [{"name": "x"}], "b": [{"name": "x"}]}


def test_one_key_may_stand_in_two_mappings():
    assert parse_yaml("[{a: 1}, {a: 2}]", "here") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: [1,\n", "line 3, column 1", "expected the node content"),
        ("a:\n\t- b", "line 2, column 1", "'\\t' that cannot start any token"),
        ("a: b: c", "line 1, column 5", "mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "expected a single document in the stream but found another document"),
        ("a: 1\nb: *unknown", "line 2, column 4", "undefined alias 'unknown'"),
        ("a: 1\n[b]: 2", "line 2, column 1", "unhashable key"),
        ("a: 1\n\nb: \x00", "line 3", "the character '\\x00' is not allowed"),
        ("a: 1\nb: !!int x", "line 2, column 4", "this int cannot be read"),
        ("a: !!bool maybe", "line 1, column 4", "this bool cannot be read"),
        (f"a: {'1' * 5000}", "line 1, column 4", "this int cannot be read"),
        ("a: &all\n  b: [*all]", "line 1, column 4", "found unconstructable recursive node"),  # a tree without end
        ("a: !!python/object:os.system ls", "line 1, column 4", "could not determine a constructor for the tag"),
    ],
)
def test_what_is_not_yaml_is_an_error_with_its_line(text, where, what):
    assert message(text).startswith(f"here, {where}: not valid YAML: ")
    assert what in message(text)
    assert "\n" not in message(text)


def test_brackets_without_end_are_an_error():
    assert message("[" * 2000) == "here: too many brackets within brackets"


def test_a_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = read_error(Path("nothing.yaml"))
    assert error == f"nothing.yaml: there is no such file (looked in {tmp_path})"


def test_a_misspelt_file_names_the_right_one(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    assert f"Did you mean '{tmp_path / 'quickstart.yaml'}'?" in read_error(tmp_path / "quickstrat.yaml")
    assert "Did you mean" not in read_error(tmp_path / "other.yaml")


def test_a_folder_cannot_be_read(tmp_path):
    assert f"{tmp_path}: cannot be read" in read_error(tmp_path)


def test_a_file_must_be_text(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"a: \xff")
    assert f"{file}: cannot be read" in read_error(file)


@pytest.mark.parametrize(("text", "what"), [("[a, b]", "not list"), ("just words", "not str"), ("3", "not int")])
def test_a_file_must_hold_a_mapping(tmp_path, text, what):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert read_error(file) == f"{file}: an experiment is a mapping of keys to values, {what}"


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_empty_file_is_called_empty(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert read_error(file).startswith(f"{file}: the file is empty")


def test_a_syntax_error_names_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\nb: [")
    assert f"{file}, line 2, column 5: not valid YAML" in read_error(file)


WORDS = (
    *("1e-4", "1.", ".5", "+1", "0o7", "0x1f", ".inf", "-.INF", ".nan", "017", "1_000", "true", "Null", "~", "", " "),
    *("on", "yes", "2024-01-31", "=", "<<", "-", "- a", "?", ": ", "a: b", "#", "a #b", "'", '"', "\\", "%a", "@a"),
    *("a\nb", "\n", "a\n", " a ", "\ta", "a\u0085b", "\u2028", "\ufeffa", "é🦥", "<image>", "{{ a }}", "[a", "!!int 1"),
    *("*a", "&a", "|", ">", "---", "...", "\x07", "a" * 200, "word " * 60),
)
NUMBERS = (0, -1, 10**30, 0.0, -0.0, 1e-4, 1e-7, 1e16, 1e22, 5e-324, 0.1 + 0.2, math.inf, -math.inf, True, False, None)


@pytest.mark.parametrize("value", [*WORDS, *NUMBERS], ids=repr)
def test_a_dumped_value_is_read_back(value):
    content = {"key": value, "list": [value, [value]], "deeper": {"key": value}}
    read = parse_yaml(dump_yaml(content), "here")
    assert read == content
    assert type(read["key"]) is type(value)


def tricky(rng: random.Random, depth: int = 3):
    """A random tree of values that YAML is known to get wrong."""
    kind = rng.choice(("word", "number", "text", "list", "mapping") if depth else ("word", "number", "text"))
    if kind == "list":
        return [tricky(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == "mapping":
        return {rng.choice(WORDS): tricky(rng, depth - 1) for _ in range(rng.randrange(4))}
    if kind == "text":
        return "".join(rng.choices(string.printable + 5 * "é\u2028\u0085\ufeff🦥\n ", k=rng.randrange(12)))
    return rng.choice(WORDS if kind == "word" else NUMBERS)


@pytest.mark.parametrize("seed", range(100))
def test_a_dumped_tree_is_read_back(seed):
    content = {"key": tricky(random.Random(seed))}
    assert parse_yaml(dump_yaml(content), "here") == content


def test_a_dump_keeps_its_order_and_names_nothing_twice():
    shared = [1, 2]
    assert dump_yaml({"b": shared, "a": shared}) == "b:\n- 1\n- 2\na:\n- 1\n- 2\n"
