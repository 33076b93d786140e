"""From the `ablate` section to variants, and what a section may not say. The base is the quickstart."""

import itertools
import re

import pytest
from compared import comparison
from tiny import QUICKSTART

from nanovlm import ConfigError, load_experiment
from nanovlm.lab.ablation import OWN_FILES, load_ablation
from nanovlm.lab.report.writer import write_report
from nanovlm.lab.results import SWEEP

FACTORS = "{axes: {projector.factor: [1, 2, 4]}, baseline: {projector.factor: 2}}"
SIZES = """
  axes:
    projector.factor: [1, 2, 4]
    size:
      small: {language_decoder.hidden_size: 64, language_decoder.num_attention_heads: 2}
      large: {language_decoder.hidden_size: 96, language_decoder.num_attention_heads: 3}
"""
BASELINE = "  baseline: {projector.factor: 2, size: small}\n"


@pytest.fixture
def write(tmp_path):
    """``write(section)``: the quickstart with this `ablate` section; ``more`` are other keys."""

    def write(section: str = "", more: str = "", name: str = "question.yaml", extends: object = QUICKSTART):
        file = tmp_path / name
        ablate = f"ablate: {section}\n" if section else ""
        file.write_text(f"extends: {extends}\n{more}\n{ablate}", encoding="utf-8")
        return file

    return write


@pytest.fixture
def ablation(write):
    return lambda section, *overrides, more="": load_ablation(write(section, more), overrides)


@pytest.fixture
def error(write):
    """The message, less the file and line, which have a test of their own."""

    def error(section: str, *overrides: str, more: str = "") -> str:
        with pytest.raises(ConfigError) as caught:
            load_ablation(write(section, more), overrides)
        return re.sub(r" \(\S+question\.yaml, line \d+\)", "", str(caught.value))

    return error


def test_what_is_wrong_with_a_section_has_its_line(write):
    file = write("{axes: {projector.factor: [1, 2]},\n  baseline: {projector.factor: 2}, seeds: [one]}", "")
    with pytest.raises(ConfigError) as caught:
        load_ablation(file)
    line = 1 + file.read_text().splitlines().index("  baseline: {projector.factor: 2}, seeds: [one]}")
    assert str(caught.value).splitlines()[0].endswith(f"input should be a valid integer ({file}, line {line})")


def by_name(ablation) -> dict:
    return {variant.name: variant for variant in ablation.variants}


# What it says


def test_the_variants_of_an_axis_with_the_baseline_first(ablation):
    found = ablation(FACTORS)
    assert [variant.name for variant in found.variants] == ["factor=2", "factor=1", "factor=4"]
    assert (found.name, found.baseline, found.seeds, found.match) == ("question", "factor=2", (0, 1, 2), "samples")
    assert [variant.changes for variant in found.variants] == [{"projector.factor": r} for r in (2, 1, 4)]


@pytest.mark.parametrize(("factor", "seed"), [(1, 0), (4, 7)])
def test_a_variant_is_the_experiment_that_overrides_would_have_made(ablation, write, factor, seed):
    variant = by_name(ablation(FACTORS))[f"factor={factor}"]
    file = write(name=f"question-factor={factor}.yaml")
    assert variant.experiment(seed) == load_experiment(file, [f"projector.factor={factor}", f"seed={seed}"])
    assert variant.experiment(seed).name == f"question-factor={factor}"
    assert "ablate" not in variant.tree


def test_several_axes_make_a_grid_and_keys_may_change_together(ablation):
    found = by_name(ablation(SIZES + BASELINE))
    assert next(iter(found)) == "factor=2,size=small"
    assert set(found) == {f"factor={r},size={size}" for r, size in itertools.product((1, 2, 4), ("small", "large"))}
    decoder = found["factor=4,size=large"].experiment(0).language_decoder.options
    assert (decoder["hidden_size"], decoder["num_attention_heads"], decoder["intermediate_size"]) == (96, 3, 256)
    assert found["factor=4,size=small"].changes == {
        "projector.factor": 4,
        "language_decoder.hidden_size": 64,
        "language_decoder.num_attention_heads": 2,
    }


def test_whole_components_are_values_and_drop_the_old_ones_options(ablation):
    found = by_name(
        ablation(
            "{axes: {projector: [pixel_shuffle, mlp, {name: resampler, num_queries: 4}]}, baseline: {projector: mlp}}"
        )
    )
    projectors = {name: variant.experiment(0).projector for name, variant in found.items()}
    assert {name: (each.name, each.options) for name, each in projectors.items()} == {
        "projector=mlp": ("mlp", {}),
        "projector=pixel_shuffle": ("pixel_shuffle", {"factor": 2}),
        "projector=resampler": ("resampler", {"num_queries": 4}),
    }


@pytest.mark.parametrize(
    "axes", ["{projector.factor: [1, 4], projector: %s}", "{projector: %s, projector.factor: [1, 4]}"]
)
def test_an_option_stands_whichever_axis_is_first(ablation, axes):
    projectors = "[pixel_shuffle, {name: average_pool}]"
    found = ablation(f"{{axes: {axes % projectors}, baseline: {{projector: average_pool, projector.factor: 4}}}}")
    options = [(v.experiment(0).projector.name, v.experiment(0).projector.options["factor"]) for v in found.variants]
    assert options[0] == ("average_pool", 4)
    assert sorted(options) == [("average_pool", 1), ("average_pool", 4), ("pixel_shuffle", 1), ("pixel_shuffle", 4)]


def test_named_variants_stand_beside_a_grid_or_alone(ablation):
    frozen = "variants: {frozen: {training.learning_rate.vision_encoder: 0}, as_it_is: {}}"
    beside = ablation(f"{{axes: {{projector.factor: [1, 4]}}, {frozen}, baseline: frozen}}")
    assert [variant.name for variant in beside.variants] == ["frozen", "factor=1", "factor=4", "as_it_is"]
    alone = ablation(f"{{{frozen}, baseline: as_it_is}}")
    assert [variant.name for variant in alone.variants] == ["as_it_is", "frozen"]
    rates = [variant.experiment(0).training.learning_rate.vision_encoder for variant in alone.variants]
    assert rates == [1e-3, 0]


def test_every_cell_that_has_all_of_an_entry_is_left_out(ablation):
    found = by_name(
        ablation(SIZES + BASELINE + "  exclude: [{projector.factor: 4, size: small}, {projector.factor: 1}]\n")
    )
    assert set(found) == {"factor=2,size=small", "factor=2,size=large", "factor=4,size=large"}


def test_what_is_left_out_does_not_rename_the_others(ablation):
    axes = "axes: {projector: [{name: resampler, num_queries: 4}, {name: resampler, num_queries: 8}, mlp]}"
    found = ablation(
        f"{{{axes}, baseline: {{projector: mlp}}, exclude: [{{projector: {{name: resampler, num_queries: 8}}}}]}}"
    )
    assert [variant.name for variant in found.variants] == ["projector=mlp", "projector=resampler-num_queries=4"]


@pytest.mark.parametrize("baseline", ["factor=1", "{projector.factor: 1}"])
def test_the_baseline_goes_by_its_axes_or_by_its_name(ablation, baseline):
    assert ablation(f"{{axes: {{projector.factor: [1, 2]}}, baseline: {baseline}}}").baseline == "factor=1"


def test_overrides_reach_into_the_section(ablation):
    found = ablation(
        FACTORS,
        "ablate.seeds=[5]",
        "ablate.axes.projector.factor=[1, 4]",
        "ablate.baseline.projector.factor=4",
        "training.steps=50",
        "name=mine",
    )
    assert [variant.name for variant in found.variants] == ["factor=4", "factor=1"]
    assert (found.seeds, found.name) == ((5,), "mine")
    assert found.variants[0].experiment(5).training.steps == 50
    assert found.variants[0].experiment(5).name == "mine-factor=4"


@pytest.mark.parametrize(
    "overrides",
    [
        ["ablate={axes: {projector.factor: [1, 2]}, baseline: {projector.factor: 1}}"],
        ["ablate.axes.projector.factor=[1, 2]", "ablate.baseline.projector.factor=1"],
        ["ablate.axes={projector.factor: [1, 2]}", "ablate.baseline=factor=1"],
    ],
)
def test_a_section_can_be_given_by_overrides_alone(overrides):
    found = load_ablation(QUICKSTART, overrides)
    assert (found.name, [variant.name for variant in found.variants]) == ("quickstart", ["factor=1", "factor=2"])


def test_overrides_reach_what_changes_together_and_named_variants(ablation):
    section = SIZES + "  variants: {frozen: {training.learning_rate.vision_encoder: 0}}\n" + BASELINE
    found = by_name(
        ablation(
            section,
            "ablate.axes.size.large.language_decoder.hidden_size=192",
            "ablate.variants.frozen.training.learning_rate.vision_encoder=1e-5",
        )
    )
    assert found["factor=2,size=large"].changes["language_decoder.hidden_size"] == 192
    assert found["frozen"].changes == {"training.learning_rate.vision_encoder": 1e-5}


# One ablation that extends another


def test_the_question_is_inherited_and_single_keys_are_replaced(write):
    below = write(
        "{axes: {projector.factor: [1, 2, 4]}, baseline: {projector.factor: 2}, seeds: [3, 4]}", name="below.yaml"
    )
    same = load_ablation(write(extends=below, more="training: {steps: 7}"))
    assert [variant.name for variant in same.variants] == ["factor=2", "factor=1", "factor=4"]
    assert same.variants[0].experiment(0).training.steps == 7
    other = load_ablation(write("{seeds: [9], baseline: {projector.factor: 4}}", extends=below))
    assert (other.seeds, other.baseline, len(other.variants)) == ((9,), "factor=4", 3)


@pytest.mark.parametrize(
    ("below", "above", "left"),
    [
        (
            FACTORS,
            "{axes: {projector: [mlp, pixel_shuffle]}, baseline: {projector: mlp}}",
            ["projector=mlp", "projector=pixel_shuffle"],
        ),
        (FACTORS, "{variants: {a: {}, b: {projector: mlp}}, baseline: b}", ["b", "a"]),
        ("{variants: {a: {}, b: {projector: mlp}}, baseline: b}", FACTORS, ["factor=2", "factor=1", "factor=4"]),
    ],
)
def test_who_gives_axes_or_variants_asks_a_question_of_their_own(write, below, above, left):
    below = write(below[:-1] + ", seeds: [8], match: steps}", name="below.yaml")
    found = load_ablation(write(above, extends=below))
    assert [variant.name for variant in found.variants] == left
    assert (found.seeds, found.match) == ((8,), "steps")  # how it is asked stays


def test_a_new_question_needs_a_baseline_of_its_own(write):
    below = write(FACTORS, name="below.yaml")
    with pytest.raises(
        ConfigError, match=r"^ablate.baseline is missing\n  baseline: What the others are compared with"
    ):
        load_ablation(write("{axes: {projector: [mlp, pixel_shuffle]}}", extends=below))


def test_names_within_a_section_are_no_components(write):
    """`name` is a key like any other here, and a baseline is replaced, be it a mapping or a word."""
    below = write("{variants: {name: {}, b: {projector: mlp}}, baseline: name}", name="below.yaml")
    assert (
        load_ablation(write("{variants: {name: {}, c: {projector: mlp}}, baseline: c}", extends=below)).baseline == "c"
    )
    grid = write("{axes: {projector: [mlp, pixel_shuffle]}, baseline: projector=mlp}", name="grid.yaml")
    assert (
        load_ablation(write("{baseline: {projector: pixel_shuffle}}", extends=grid)).baseline
        == "projector=pixel_shuffle"
    )


# What is held equal


def budgets(found) -> dict[str, tuple[int, int, int]]:
    trained = {variant.name: variant.experiment(0).training for variant in found.variants}
    return {name: (each.steps, each.samples, each.samples_per_step) for name, each in trained.items()}


STEP_SIZES = "{axes: {training.samples_per_step: [32, 48]}, baseline: {training.samples_per_step: 32}, match: %s}"


@pytest.mark.parametrize(
    ("match", "budget", "expected"),
    [
        ("samples", "steps: 10", {32: (0, 320), 48: (0, 320)}),
        ("samples", "samples: 100", {32: (0, 100), 48: (0, 100)}),
        ("steps", "steps: 10", {32: (10, 0), 48: (10, 0)}),
        ("steps", "samples: 100", {32: (4, 0), 48: (4, 0)}),  # the baseline's fourth step is a small one
        ("none", "steps: 10", {32: (10, 0), 48: (10, 0)}),
    ],
)
def test_every_variant_gets_as_much_as_the_baseline(ablation, match, budget, expected):
    found = ablation(STEP_SIZES % match, more=f"training: {{{budget}}}")
    assert budgets(found) == {f"samples_per_step={n}": (*amounts, n) for n, amounts in expected.items()}


def test_a_budget_that_is_equal_anyway_stands_as_it_is_written(ablation):
    assert set(budgets(ablation(FACTORS, more="training: {steps: 7}")).values()) == {(7, 0, 32)}
    epochs = ablation(FACTORS, more="training: {epochs: 2}")
    assert {variant.experiment(0).training.epochs for variant in epochs.variants} == {2}
    text = ablation("{axes: {data.turns: [first, all]}, baseline: {data.turns: all}}", more="training: {epochs: 2}")
    assert {variant.experiment(0).training.epochs for variant in text.variants} == {2}


def test_equal_flops_are_a_budget_in_flops(ablation):
    found = ablation(FACTORS[:-1] + ", match: flops}", more="training: {flops: 1e12}")
    assert {variant.experiment(0).training.flops for variant in found.variants} == {1e12}


def test_with_nothing_held_equal_an_axis_may_be_a_budget(ablation):
    found = ablation("{axes: {training.samples: [64, 128]}, baseline: {training.samples: 64}, match: none}")
    assert budgets(found) == {"samples=64": (0, 64, 32), "samples=128": (0, 128, 32)}


@pytest.mark.parametrize(
    ("section", "more", "message"),
    [
        (
            "{axes: {data.train.0.train_size: [64, 128]}, baseline: {data.train.0.train_size: 64}}",
            "training: {epochs: 1}",
            "ablate.match=samples: how long an epoch is depends on data.train.0.train_size, which is varied; "
            "set training.samples in the place of training.epochs",
        ),
        (
            STEP_SIZES % "steps",
            "training: {epochs: 1}",
            "ablate.match=steps: how many steps an epoch takes depends on samples_per_step; "
            "set training.steps in the place of training.epochs",
        ),
        (
            FACTORS,
            "training: {flops: 1e12}",
            "ablate.match=samples: the budget is training.flops, which gives cheaper variants more samples; "
            "set ablate.match=flops, or training.samples in the place of training.flops",
        ),
    ],
)
def test_a_budget_that_cannot_be_held_equal(error, section, more, message):
    assert error(section, more=more) == message


@pytest.mark.parametrize("change", ["training.steps: 5", "training: {steps: 5}"])
def test_a_variant_cannot_have_more_than_the_others(error, change):
    held = "training.steps is a budget, and `ablate.match: samples` holds the samples of all variants equal; "
    held += "leave it out, or set ablate.match=none"
    assert error(f"{{variants: {{a: {{}}, b: {{{change}}}}}, baseline: a}}") == f"ablate.variants.b: {held}"
    axis = f"{{size: {{small: {{}}, large: {{{change}}}}}}}"
    assert error(f"{{axes: {axis}, baseline: {{size: small}}}}") == f"ablate.axes.size: {held}"


# What it may not say


def test_a_file_without_the_section_asks_for_one_run(write):
    file = write()
    with pytest.raises(ConfigError) as caught:
        load_ablation(file)
    assert str(caught.value) == f"{file}: it asks for one run (it has no `ablate:`); start it by `nanovlm train {file}`"


def test_a_file_with_the_section_is_no_single_run(write):
    file = write(FACTORS)
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    assert str(caught.value) == f"{file}: it asks for several runs (`ablate:`); start them by `nanovlm ablate {file}`"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "{axis: {projector.factor: [1, 2]}, baseline: x}",
            "ablate: unknown option 'axis'. Did you mean 'axes'?\n"
            "  Known here: axes, baseline, exclude, match, seeds, variants",
        ),
        ("3", "ablate=3: input should be a mapping of keys to values"),
        ("{baseline: x}", "ablate: neither axes nor variants are given, so nothing is varied"),
        (
            "{axes: {projector.factor: []}, baseline: x}",
            "ablate.axes.projector.factor: it has no values, so nothing would be trained",
        ),
        ("{axes: {size: {}}, baseline: x}", "ablate.axes.size: it has no values, so nothing would be trained"),
        (
            "{axes: {projector.factor: [1, 2, 1, 1]}, baseline: x}",
            "ablate.axes.projector.factor: the value 1 stands twice",
        ),
        (
            "{axes: {projector: [mlp, {name: mlp}]}, baseline: x}",
            "ablate.axes.projector: the value {'name': 'mlp'} stands twice",
        ),
        (
            "{axes: {projector.factor: 2}, baseline: x}",
            "ablate.axes.projector.factor: an axis is a list of values, or a mapping of names to what each sets, not 2",
        ),
        (
            "{axes: {projector: {name: mlp}}, baseline: x}",
            "ablate.axes.projector: 'name' must be a mapping of the dotted keys that it sets, not 'mlp'; "
            "or write the axis as a list of values",
        ),
        ("{axes: {size: {1: {}, 2: {}}}, baseline: x}", "ablate.axes.size: the key 1 is no word: put it in quotes"),
        ("{axes: {1: [2, 3]}, baseline: x}", "ablate.axes: the key 1 is no word: put it in quotes"),
        ("{variants: {1: {}}, baseline: x}", "ablate.variants: the key 1 is no word: put it in quotes"),
        ("{axes: {a..b: [2, 3]}, baseline: x}", "ablate.axes.a..b: 'a..b' is no dotted key, such as projector.factor"),
        (
            "{axes: {projector.factor: [1, 2], size: {small: {projector.factor: 4}}}, baseline: x}",
            "ablate.axes: projector.factor is set by the axes projector.factor and size",
        ),
    ],
)
def test_what_is_wrong_with_axes(error, section, message):
    assert error(section) == message


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("seed", "every variant is trained with the same seeds: set ablate.seeds, for example [0, 1, 2]"),
        ("seeds", "every variant is trained with the same seeds: set ablate.seeds, for example [0, 1, 2]"),
        ("name", "a variant is named after what it sets, or by its own name under ablate.variants"),
        ("ablate.match", "a variant is one run, and cannot ask for several"),
        ("extends", "a file is extended at its top, for all variants alike"),
    ],
)
def test_what_cannot_be_varied(error, key, reason):
    assert (
        error(f"{{axes: {{{key}: [1, 2]}}, baseline: x}}") == f"ablate.axes.{key}: {key!r} cannot be varied: {reason}"
    )
    assert (
        error(f"{{axes: {{size: {{s: {{{key}: 1}}}}}}, baseline: x}}")
        == f"ablate.axes.size: {key!r} cannot be varied: {reason}"
    )
    assert (
        error(f"{{variants: {{v: {{{key}: 1}}}}, baseline: v}}")
        == f"ablate.variants.v: {key!r} cannot be varied: {reason}"
    )


@pytest.mark.parametrize("name", ["a/b", "", "..", "-o", "a b", "é", "x" * 81])
def test_a_variants_name_is_a_folders(error, name):
    assert error(f"{{variants: {{'{name}': {{}}, b: {{projector: mlp}}}}, baseline: b}}") == (
        f"ablate.variants: {name!r} cannot be a folder's name; take up to 80 letters, digits and ._=,+- "
        "(the first a letter, a digit or _)"
    )


@pytest.mark.parametrize("name", ["figures", "Summary.json", "ablation.yaml"])
def test_a_variants_folder_is_none_of_the_sweeps_own(error, name):
    assert error(f"{{variants: {{{name}: {{}}, b: {{projector: mlp}}}}, baseline: b}}") == (
        f"ablate.variants: {name!r} is what a sweep keeps something else under; rename it"
    )


def test_all_that_a_report_writes_into_a_sweeps_folder_is_known(tmp_path):
    write_report(comparison(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} | {SWEEP, "submitit"} == set(OWN_FILES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("3", "name=3: input should be a valid string"),
        ("..", "name: a run's name is also its folder's: '..' cannot be one"),
        ("", "name=None: input should be a valid string"),
    ],
)
def test_an_ablations_name_is_a_folders_too(error, name, message):
    assert error(FACTORS, f"name={name}").splitlines()[0] == message


@pytest.mark.parametrize(
    ("section", "override", "key"),
    [
        (FACTORS, "projector.factor=4", "projector.factor"),
        (FACTORS, "projector={factor: 4}", "projector.factor"),
        (
            "{axes: {projector: [mlp, {name: average_pool}]}, baseline: {projector: mlp}}",
            "projector.factor=4",
            "projector",
        ),
        (
            "{axes: {training.learning_rate: [1e-3, 1e-4]}, baseline: {training.learning_rate: 1e-3}}",
            "training.learning_rate.projector=1e-2",
            "training.learning_rate",
        ),
    ],
)
def test_an_override_that_no_variant_heeds_is_refused(error, section, override, key):
    assert error(section, "data.workers=1", override) == (
        f"override {override}: every variant sets {key} itself, so it would change none of them; leave it out, or "
        "change the ablate section"
    )


@pytest.mark.parametrize(
    ("section", "override"),
    [
        ("{axes: {projector: [mlp, pixel_shuffle]}, baseline: {projector: mlp}}", "projector.factor=4"),
        ("{variants: {a: {}, b: {projector.factor: 1}}, baseline: a}", "projector.factor=4"),
        (FACTORS, "projector=average_pool"),
        ("{axes: {data.train.0.train_size: [32, 64]}, baseline: {data.train.0.train_size: 64}}", "data.train.0.seed=1"),
    ],
)
def test_an_override_that_some_variant_heeds_stands(ablation, section, override):
    changed, as_written = ablation(section, override), ablation(section)
    assert [each.tree for each in changed.variants] != [each.tree for each in as_written.variants]


def test_an_override_may_say_what_the_file_says(ablation):
    assert ablation(FACTORS, "projector.factor=2") == ablation(FACTORS)


def test_an_overridden_seed_is_told_where_the_seeds_are(error):
    assert error(FACTORS, "seed=5") == "override seed=5: an ablation has its own seeds; set ablate.seeds=[5]"


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("{a: {}, A: {projector: mlp}}", "ablate.variants: 'A' would be in one folder with 'a'; rename it"),
        ("{Factor=1: {}}", "ablate.variants: 'Factor=1' would be in one folder with 'factor=1'; rename it"),
    ],
)
def test_two_variants_need_two_folders(error, variants, message):
    assert (
        error(f"{{axes: {{projector.factor: [1, 2]}}, variants: {variants}, baseline: {{projector.factor: 1}}}}")
        == message
    )


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("{projector.factor: 3, size: small}", "projector.factor has no value 3.\n  Its values: 1, 2, 4"),
        (
            "{projector.factor: 2, size: smal}",
            "size has no value 'smal'. Did you mean 'small'?\n  Its values: small, large",
        ),
        (
            "{projector.facter: 2, projector.factor: 2, size: small}",
            "unknown axis 'projector.facter'. Did you mean 'projector.factor'?\n  Known here: projector.factor, size",
        ),
        ("{projector.factor: 2}", "it must also say which size: small, large"),
        (
            "factor=2,size=smal",
            "unknown variant 'factor=2,size=smal'. Did you mean 'factor=2,size=small'?\n"
            "  Known here: factor=1,size=large, factor=1,size=small, factor=2,size=large, factor=2,size=small, "
            "factor=4,size=large, factor=4,size=small",
        ),
        ("2", "it is one value of each axis, as in {projector.factor: 2}, or a name, not 2"),
        ("{1: 2}", "the key 1 is no word: put it in quotes"),
    ],
)
def test_a_baseline_is_one_of_the_variants(error, baseline, message):
    assert error(f"{SIZES}  baseline: {baseline}") == f"ablate.baseline: {message}"


def test_a_baseline_by_its_axes_where_there_are_none(error):
    message = error("{variants: {a: {}, b: {projector: mlp}}, baseline: {projector: mlp}}")
    assert message == "ablate.baseline: there are no axes; give the name of a variant"


def test_a_baseline_that_is_left_out(error):
    message = error(SIZES + BASELINE + "  exclude: [{projector.factor: 4}, {size: small}]\n")
    assert message == "ablate.baseline: it is left out by ablate.exclude.1"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{projector.factor: 3}", "projector.factor has no value 3.\n  Its values: 1, 2, 4"),
        ("{factor: 2}", "unknown axis 'factor'.\n  Known here: projector.factor, size"),
        ("{}", "it names no axis, and would leave nothing"),
        ("{1: 2}", "the key 1 is no word: put it in quotes"),
    ],
)
def test_what_is_left_out_is_there(error, entry, message):
    assert error(f"{SIZES}{BASELINE}  exclude: [{entry}]\n") == f"ablate.exclude.0: {message}"


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("[1, 2, 1]", "ablate.seeds: 1 stands twice, and would be trained twice alike"),
        ("[]", "ablate.seeds=[]: list should have at least 1 item, not 0"),
        ("3", "ablate.seeds=3: input should be a valid list"),
        ("[one]", "ablate.seeds.0='one': input should be a valid integer"),
        ("[1.0]", "ablate.seeds.0=1.0: input should be a whole number, written 1"),
    ],
)
def test_seeds_are_different_whole_numbers(error, seeds, message):
    assert error(FACTORS[:-1] + f", seeds: {seeds}}}").splitlines()[0] == message


def test_what_can_be_held_equal(error):
    message = error(FACTORS[:-1] + ", match: sample}").splitlines()
    assert message[0] == "ablate.match='sample': input should be 'samples', 'steps', 'flops' or 'none'"
    assert message[1] == "  match: What is held equal: samples seen, optimizer steps, flops spent, or none."


@pytest.mark.parametrize(
    "section",
    [
        "{axes: {projector.factor: [2]}, baseline: {projector.factor: 2}}",
        "{axes: {projector.factor: [1, 2]}, baseline: {projector.factor: 2}, exclude: [{projector.factor: 1}]}",
    ],
)
def test_one_variant_is_no_comparison(error, section):
    assert error(section) == "ablate: only one variant, factor=2, is left; a comparison takes two or more"


def test_an_index_that_a_list_has_not_is_said_once(error):
    axes = "{data.train.1.seed: [1, 2], projector.factor: [1, 2]}"
    message = error(f"{{axes: {axes}, baseline: {{data.train.1.seed: 1, projector.factor: 1}}}}")
    assert message == (
        "data.train.1.seed: '1' is no entry of this list; it has entries 0 to 0, as in data.train.0.seed=..."
    )


def test_all_problems_of_a_section_are_said_at_once(error):
    section = """
  axes:
    projector.factor: [1, 2, 2]
    seed: [1, 2]
    training.steps: [5]
    size: {small: {language_decoder.hidden_size: 64}}
  variants: {a/b: {}}
  exclude: [{size: large}]
  baseline: {size: smal}
  seeds: [1, 1]
"""
    lines = [line for line in error(section).splitlines() if line.startswith("- ")]
    starts = [
        "axes.projector.factor: the value 2",
        "axes.seed: 'seed' cannot",
        "axes.training.steps: training.steps is",
        "variants: 'a/b'",
        "exclude.0: size has no value 'large'",
        "baseline: size has no value 'smal'",
        "baseline: it must also say which projector.factor",
        "baseline: it must also say which seed",
        "baseline: it must also say which training.steps",
        "seeds: 1 stands twice",
    ]
    assert [line.startswith(f"- ablate.{start}") for line, start in zip(lines, starts, strict=True)] == [True] * 10
