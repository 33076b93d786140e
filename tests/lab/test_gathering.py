"""From folders to variants, with names that say in what they differ."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import result
from tiny import tiny_experiment

from nanovlm import ConfigError, train
from nanovlm.lab.gathering import find_baseline, gather
from nanovlm.lab.settings import same_settings, settings_apart, variant_names
from nanovlm.lab.sweep.sweep import Sweep


def tree(*overrides: str):
    return tiny_experiment(*overrides).model_dump()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Runs of factors 2 and 4 with seeds 0 and 1, by their names."""
    parent = tmp_path_factory.mktemp("gathered")
    for factor in (2, 4):
        for seed in (0, 1):
            train(tiny_experiment(f"projector.factor={factor}", f"seed={seed}"), parent / f"f{factor}-s{seed}")
    return {folder.name: folder for folder in parent.iterdir()}


@pytest.fixture
def sweep(trained, tmp_path):
    """A sweep of both factors and three seeds, of which the last one has not begun."""
    variants = {"few": {"projector.factor": 4}, "many": {"projector.factor": 2}}
    found = Sweep(tmp_path / "factors", "factors", variants, "many", (0, 1, 2), "samples")
    found.write()
    for variant, changes in variants.items():
        for seed in (0, 1):
            shutil.copytree(trained[f"f{changes['projector.factor']}-s{seed}"], found.folder / variant / f"s{seed}")
    return found


def refusal(*arguments) -> str:
    with pytest.raises(ConfigError) as refused:
        gather(*arguments)
    return str(refused.value)


def seeds_of(chosen) -> dict[str, list[int]]:
    return {name: [run.seed for run in runs] for name, runs in chosen.groups.items()}


def test_runs_that_differ_in_the_seed_are_one_variant(trained):
    chosen = gather([trained[name] for name in ("f2-s0", "f4-s1", "f2-s1", "f4-s0")])
    assert seeds_of(chosen) == {"factor=2": [0, 1], "factor=4": [1, 0]}
    assert (chosen.baseline, chosen.name, chosen.unfinished) == ("factor=2", "quickstart", ())


def test_the_first_run_is_the_baseline_unless_another_is_chosen(trained):
    folders = [trained["f4-s0"], trained["f2-s0"]]
    assert gather(folders).baseline == "factor=4"
    assert gather(folders, "factor=2").baseline == "factor=2"
    assert gather(folders, str(trained["f2-s0"])).baseline == "factor=2"
    assert refusal(folders, "factor=3") == (
        "the baseline has no finished run here; choose one by --baseline: unknown variant 'factor=3'. "
        "Did you mean 'factor=4'?\n  Known here: factor=2, factor=4"
    )


def test_a_sweep_gives_all_its_finished_runs_under_its_variants_names(sweep):
    chosen = gather([sweep.folder])
    assert seeds_of(chosen) == {"few": [0, 1], "many": [0, 1]}
    assert (chosen.baseline, chosen.name) == ("many", "factors")
    assert [(run.variant, run.seed, run.state) for run in chosen.unfinished] == [
        ("few", 2, "waiting"),
        ("many", 2, "waiting"),
    ]


def test_a_further_run_joins_the_variant_of_a_sweep(sweep, trained):
    shutil.rmtree(sweep.folder / "few" / "s1")
    chosen = gather([sweep.folder, trained["f4-s1"]])
    assert seeds_of(chosen) == {"few": [0, 1], "many": [0, 1]}
    assert chosen.name == "comparison"


def test_a_sweep_whose_baseline_has_not_finished_asks_for_another(sweep):
    shutil.rmtree(sweep.folder / "many")
    assert "the baseline has no finished run here; choose one by --baseline: unknown variant 'many'" in refusal(
        [sweep.folder]
    )
    assert gather([sweep.folder], "few").baseline == "few"


def test_a_sweep_without_a_finished_run_says_so(sweep):
    for variant in ("few", "many"):
        shutil.rmtree(sweep.folder / variant)
    told = refusal([sweep.folder])
    assert told.endswith(
        "factors: no run of this sweep has finished; go on with it by the `nanovlm ablate` that began it"
    )


def test_a_damaged_run_of_a_sweep_is_not_passed_over(sweep):
    (sweep.folder / "few" / "s1" / "summary.json").write_text("{")
    assert "few/s1/summary.json is damaged" in refusal([sweep.folder])


def test_all_wrong_folders_are_reported_at_once(trained, tmp_path):
    told = refusal([tmp_path / "none", trained["f2-s0"], trained["f2-s0"] / "model", trained["f2-s0"]])
    assert [line[:2] for line in told.splitlines()] == ["- "] * 3
    assert "there is no such folder" in told
    assert "this is a model's folder" in told
    assert f"{trained['f2-s0']}: this run is named twice; name it once" in told


def test_no_folder_at_all_is_refused():
    assert refusal([]) == "RUN is missing: name two run folders or more, or a sweep's folder"


@pytest.mark.parametrize(
    "changed",
    ["seed=3", "name=other", "trackers=[console]", "checkpoints.every=7", "training.log_every=5", "data.workers=1",
     "training.tokens_per_row=2048", "training.precision=fp32"],
)  # fmt: skip
def test_seeds_names_logging_and_hardware_make_no_other_variant(changed):
    assert same_settings(tree(), tree(changed))


@pytest.mark.parametrize(
    "changed",
    ["training.steps=4", "data.seed=1", "projector.factor=4", "training.betas=[0.8, 0.9]", "data.train.0.weight=2"],
)
def test_any_other_setting_does(changed):
    assert not same_settings(tree(), tree(changed))
    (key,) = settings_apart(tree(changed), tree())
    assert changed.startswith(key)


def test_what_differs_is_named_by_dotted_key_and_both_ways():
    there, here = tree("training.samples_per_step=4", "projector.factor=1"), tree()
    assert settings_apart(here, there) == {"projector.factor": 2, "training.samples_per_step": 8}
    assert settings_apart(there, here) == {"projector.factor": 1, "training.samples_per_step": 4}


def test_another_component_is_one_setting_with_its_options():
    assert settings_apart(tree("projector.name=mlp", "projector.hidden_size=8"), tree()) == {
        "projector": {"name": "mlp", "hidden_size": 8}
    }


def test_an_option_that_is_left_out_is_none():
    assert settings_apart({"projector": {"name": "a"}}, {"projector": {"name": "a", "size": 3}}) == {
        "projector.size": None
    }


def test_variants_are_called_after_the_few_settings_in_which_they_differ():
    trees = [tree(), tree("projector.factor=4"), tree("projector.factor=4", "training.steps=5")]
    assert variant_names(trees) == ["factor=2,steps=3", "factor=4,steps=3", "factor=4,steps=5"]


def test_a_component_is_called_by_its_name_beside_options_of_others():
    assert variant_names([tree(), tree("projector.name=mlp"), tree("projector.factor=4")]) == [
        "projector=pixel_shuffle-factor=2",
        "projector=mlp",
        "projector=pixel_shuffle-factor=4",
    ]


MANY = ("projector.factor=4", "training.steps=5", "training.warmup=0.1", "data.seed=2")


def test_of_many_settings_the_runs_names_say_more():
    assert variant_names([tree(), tree("name=all-at-once", *MANY)]) == ["quickstart", "all-at-once"]


def test_of_many_settings_and_equal_names_the_differences_remain():
    base, other = variant_names([tree(), tree(*MANY)])
    assert base == "quickstart"
    assert other == "data.seed=2,factor=4,steps=5,warmup=0.1"


def test_a_baseline_may_be_any_of_a_variants_runs():
    runs = [replace(result(seed=seed), folder=Path(f"there/{seed}")) for seed in (0, 1)]
    assert find_baseline("there/1", {"a": [result()], "b": runs}) == "b"
