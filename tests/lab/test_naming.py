import itertools
import random
import re

import pytest

from nanovlm.experiment import Experiment
from nanovlm.lab.naming import LONGEST, names, short_keys

FOLDER = re.compile(r"[A-Za-z0-9._=,+-]+")


def of_axis(key: str, *values: object) -> list[str]:
    return names([{key: value} for value in values])


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("projector.factor", [1, 2, 4], ["factor=1", "factor=2", "factor=4"]),
        (
            "training.learning_rate.projector",
            [1e-3, 2e-3],
            ["learning_rate.projector=0.001", "learning_rate.projector=0.002"],
        ),
        ("training.flops", [1e12, 2.5e15], ["flops=1e+12", "flops=2.5e+15"]),
        ("training.warmup", [0, 0.5, 1.0], ["warmup=0", "warmup=0.5", "warmup=1"]),
        ("training.compile", [True, False, "auto"], ["compile=true", "compile=false", "compile=auto"]),
        ("language_decoder.lora", [None, {"rank": 8}], ["lora=none", "lora=rank=8"]),
        ("training.betas", [[0.9, 0.95], [0.9, 0.999]], ["betas=0.9+0.95", "betas=0.9+0.999"]),
        ("seed", [-1, 1], ["seed=-1", "seed=1"]),
        ("size", ["small", "large"], ["size=small", "size=large"]),
        ("data.seed", [0, 1], ["data.seed=0", "data.seed=1"]),
        ("data.train.0.weight", [1, 2], ["weight=1", "weight=2"]),
        ("data.train.0", ["a", "b"], ["train.0=a", "train.0=b"]),
        ("projector.name", ["mlp", "resampler"], ["projector=mlp", "projector=resampler"]),
        ("vision_encoder.weights", ["google/siglip", "my folder"], ["weights=google-siglip", "weights=my-folder"]),
        ("language_decoder.tokenizer", ["", "bytes"], ["tokenizer=empty", "tokenizer=bytes"]),
    ],
)
def test_a_name_is_the_end_of_the_key_and_the_value(key, values, expected):
    assert of_axis(key, *values) == expected


def test_several_settings_are_joined_in_the_order_of_their_keys():
    (name, _) = names([{"size": "small", "projector.factor": 4}, {"projector.factor": 2, "size": "small"}])
    assert name == "factor=4,size=small"


def test_a_key_is_as_long_as_it_takes_to_tell_it_from_the_others():
    assert short_keys(["vision_encoder.hidden_size", "language_decoder.hidden_size", "projector.factor"]) == {
        "vision_encoder.hidden_size": "vision_encoder.hidden_size",
        "language_decoder.hidden_size": "language_decoder.hidden_size",
        "projector.factor": "factor",
    }
    assert short_keys(["a.b.c", "x.b.c", "c"]) == {"a.b.c": "a.b.c", "x.b.c": "x.b.c", "c": "c"}


@pytest.mark.parametrize("section", sorted(Experiment.model_fields.keys() - {"name"}))
def test_no_short_key_looks_like_a_section_of_the_experiment(section):
    assert short_keys([f"training.group.{section}"]) == {f"training.group.{section}": f"group.{section}"}


def test_a_component_is_named_with_the_options_that_tell_it_from_its_like():
    few, many = (
        {"name": "resampler", "num_queries": 4, "num_heads": 3},
        {"name": "resampler", "num_queries": 8, "num_heads": 3},
    )
    assert of_axis("projector", "mlp", few) == ["projector=mlp", "projector=resampler"]
    assert of_axis("projector", few, many) == ["projector=resampler-num_queries=4", "projector=resampler-num_queries=8"]
    assert of_axis("projector", "resampler", {"name": "resampler", "num_queries": 8}) == [
        "projector=resampler",
        "projector=resampler-num_queries=8",
    ]


def test_settings_that_not_all_have_are_named_where_they_are():
    assert names([{"projector.factor": 2}, {"training.steps": 5}, {}]) == ["factor=2", "steps=5", "unchanged"]


def test_a_disk_that_does_not_tell_capitals_apart_can_hold_them():
    upper, lower = of_axis("size", "A", "a")
    assert re.fullmatch(r"size=A-[0-9a-f]{8}", upper)
    assert re.fullmatch(r"size=a-[0-9a-f]{8}", lower)
    assert upper.casefold() != lower.casefold()


def test_what_looks_alike_once_it_is_fit_for_a_folder_is_told_apart():
    found = of_axis("vision_encoder.weights", "a/b", "a b", "a-b", "c")
    assert len(set(found)) == 4
    assert found[-1] == "weights=c"


def test_a_long_name_is_cut_and_still_its_own():
    found = of_axis("size", "x" * 200 + "1", "x" * 200 + "2")
    assert [len(name) for name in found] == [LONGEST, LONGEST]
    assert found[0][:-8] == found[1][:-8]
    assert found[0] != found[1]


def random_value(rng: random.Random, depth: int = 0) -> object:
    kinds = ["int", "float", "text", "bool", "none", *(["list", "component", "mapping"] if depth < 2 else [])]
    kind = rng.choice(kinds)
    if kind == "text":
        return "".join(rng.choices("aAbB-_./ ü,=+", k=rng.randint(0, 30)))
    if kind == "list":
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind in ("component", "mapping"):
        options = {rng.choice("pqr"): random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
        return ({"name": rng.choice(["mlp", "resampler"])} if kind == "component" else {}) | options
    return {"int": rng.randint(-3, 3), "float": rng.choice([1e-4, 0.1 + 0.2, -2.5, 1e30]), "bool": True, "none": None}[
        kind
    ]


@pytest.mark.parametrize("seed", range(30))
def test_names_are_fit_for_folders_never_collide_and_do_not_depend_on_the_order(seed):
    rng = random.Random(seed)
    keys = [
        "projector",
        "projector.factor",
        "training.learning_rate.projector",
        "size",
        "data.train.0.weight",
        "a.b",
        "A.b",
    ]
    changes: list[dict] = []
    for _ in range(30):
        drawn = {key: random_value(rng) for key in rng.sample(keys, rng.randint(0, 4))}
        if not any(repr(sorted(drawn.items())) == repr(sorted(other.items())) for other in changes):
            changes.append(drawn)
    found = names(changes)
    assert all(FOLDER.fullmatch(name) and len(name) <= LONGEST for name in found)
    assert len({name.casefold() for name in found}) == len(changes)
    order = rng.sample(range(len(changes)), len(changes))
    turned = [dict(reversed(changes[i].items())) for i in order]
    assert names(turned) == [found[i] for i in order]


def test_a_whole_grid_is_named():
    grid = [
        {"projector.factor": r, "size": s, "training.steps": n} for r, s, n in itertools.product([1, 2], "ab", [5, 6])
    ]
    assert names(grid)[0] == "factor=1,size=a,steps=5"
    assert len(set(names(grid))) == 8
