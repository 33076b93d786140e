"""Merged values keep the place where they were written."""

import copy
import pickle
import random

import pytest

from nanovlm.merging import Change, extend, names_first, override, split_override
from nanovlm.places import Place, Written, all_dropped, joined, place_at, place_of, value_at
from nanovlm.reading import read_experiment
from nanovlm.yaml_reader import dump_yaml, parse_yaml

KEYS = ("training", "data", "projector", "learning_rate", "name", "steps", "samples", "train", "a", "b")


def written(rng: random.Random, file: str) -> str:
    """A random YAML file, in which every value says its own file and line."""
    lines: list[str] = []

    def mapping(indent: str, depth: int) -> None:
        for key in rng.sample(KEYS, rng.randrange(1, 6)):
            kind = rng.choice(("value", "mapping", "list")) if depth and key != "name" else "value"
            lines.append(f"{indent}{key}:" + (f" {file}:{len(lines) + 1}" if kind == "value" else ""))
            if kind == "mapping":
                mapping(f"{indent}  ", depth - 1)
            for _ in range(rng.randrange(1, 3) if kind == "list" else 0):
                lines.append(f"{indent}- {file}:{len(lines) + 1}")

    mapping("", 3)
    return "\n".join(lines)


def values(tree, place: Place | None = None):
    """Every plain value, and its place."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from values(value, place_of(tree, key))
    else:
        yield tree, place


def plain(tree):
    """Without places."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("seed", range(200))
def test_every_value_of_merged_files_keeps_its_own_line(seed):
    rng = random.Random(seed)
    one, two, three = (parse_yaml(written(rng, file), file) for file in ("one", "two", "three"))
    merged = extend(extend(one, two), three)
    assert merged == extend(extend(plain(one), plain(two)), plain(three))
    found = list(values(merged))
    assert found
    assert [value for value, _ in found] == [f"{place.where}:{place.line}" for _, place in found]


@pytest.mark.parametrize("seed", range(100))
def test_an_override_has_its_own_place_and_leaves_the_others(seed):
    rng = random.Random(seed)
    tree = parse_yaml(written(rng, "one"), "one")
    keys = rng.sample([key for key in KEYS if key not in ("name", "train")], 2)
    if isinstance(tree.get(keys[0]), list):
        keys[1] = "0"
    changed = override(tree, keys, "new", place=Place("override"))
    assert value_at(changed, keys) == ("new", Place("override"))
    rest = [(value, place) for value, place in values(changed) if value != "new"]
    assert [value for value, _ in rest] == [f"{place.where}:{place.line}" for _, place in rest]


@pytest.mark.parametrize(
    ("text", "path", "override_text", "expected"),
    [
        ("a: mouth", "a.name", "a.width=3", "one, line 1"),  # a component by its name alone
        ("a:\n- x\n- mouth", "a.1.name", "a.1.width=3", "one, line 3"),
        (
            "training:\n  weight_decay: 1",
            "training.weight_decay.projector",
            "training.weight_decay.vision_encoder=3",
            "one, line 2",
        ),
        ("a: 1", "b.c", "b.c=3", "override b.c=3"),
        ("a: 1", "b.c", "b={c: 3}", "override b={c: 3}"),
        ("a: [1, 2]", "a.1", "a.1=5", "override a.1=5"),
        ("a: [1, 2]", "a.0", "a.1=5", "one, line 1"),
        ("a: [{b: 1,\n c: 2}]", "a.0.c", "a.0.b=5", "one, line 2"),
    ],
)
def test_what_an_override_opens_keeps_its_place(text, path, override_text, expected):
    keys, value = split_override(override_text)
    tree = override(parse_yaml(text, "one"), keys, value, place=Place.of_override(override_text))
    found = value_at(tree, path.split("."))
    assert found
    assert str(found[1]) == expected


def test_lines_are_those_of_keys_and_of_entries():
    tree = parse_yaml("a:\n  b:\n    1\n  c: {d: 1,\n  e: 2}\nf:\n- 1\n-\n  - 2", "here")
    lines = {path: place_at(tree, path.split(".")).line for path in ("a", "a.b", "a.c", "a.c.e", "f", "f.0", "f.1.0")}
    assert lines == {"a": 1, "a.b": 2, "a.c": 4, "a.c.e": 5, "f": 6, "f.0": 7, "f.1.0": 9}


def test_what_is_not_there_has_the_place_above_it():
    tree = parse_yaml("a:\n  b: 1", "here")
    assert place_at(tree, ["a", "c"]) == Place("here", 1)
    assert place_at(tree, ["c"]) is None
    assert value_at(tree, ["a", "c"]) is None


def test_what_a_new_name_or_budget_drops_is_remembered():
    base = parse_yaml("projector:\n  name: a\n  factor: 2\ntraining: {steps: 3, warmup: 0}", "base")
    own = parse_yaml("projector: b\ntraining:\n  samples: 4", "own")
    dropped = dict(all_dropped(extend(base, own)))
    assert dropped.keys() == {"projector.factor", "training.steps"}
    factor = dropped["projector.factor"]
    assert (factor.value, factor.place, factor.by) == (2, Place("base", 3), Place("own", 1))
    assert dropped["training.steps"].by == Place("own", 3)


def test_what_came_back_is_not_dropped():
    base, own = parse_yaml("projector: {name: a, factor: 2}", "base"), parse_yaml("projector: b", "own")
    last = parse_yaml("projector: {factor: 3}", "last")
    assert list(all_dropped(extend(extend(base, own), last))) == []


def test_a_tree_with_places_is_an_ordinary_tree():
    content = {"a": {"b": [1, {"c": None}]}}
    tree = parse_yaml("a:\n  b: [1, {c: null}]", "here")
    assert tree == content
    assert repr(tree) == repr(content)
    assert dump_yaml(tree) == dump_yaml(content)
    for again in (copy.deepcopy(tree), pickle.loads(pickle.dumps(tree))):
        assert again == content
        assert place_at(again, ["a", "b", "1", "c"]) == Place("here", 2)


def test_a_plain_mapping_joins_without_places():
    tree = joined(parse_yaml("a: 1\nb: 2", "here"), {"a": 3})
    assert (tree, place_of(tree, "a"), place_of(tree, "b")) == ({"a": 3, "b": 2}, None, Place("here", 2))
    assert Written.at(Place("there"), {"a": 1}).places == {"a": Place("there")}


def test_changes_keep_their_places_in_any_order():
    first, second = Change(["p", "factor"], 3, Place("x")), Change(["p"], "other", Place("y"))
    assert names_first([first, second]) == [second, first]


def test_the_name_of_a_run_is_its_files_or_its_own(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("seed: 1")
    assert place_of(read_experiment(file), "name") == Place("file name")
    assert place_of(read_experiment(file, ["name=x"]), "name") == Place("override name=x")
    file.write_text("seed: 1\nname: x")
    assert place_of(read_experiment(file), "name") == Place(str(file), 2)
