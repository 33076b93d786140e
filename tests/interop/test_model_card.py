"""Model cards say what a run's files say, and nothing that they do not say."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny import tiny_experiment

from nanovlm import CheckpointError, load_experiment, train
from nanovlm.evaluation.evaluator import read_items
from nanovlm.evaluation.metrics import wilson_interval
from nanovlm.interop.model_card import model_card


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carded") / "run"
    train(tiny_experiment("data.validation.share=0.2", "seed=4"), folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy to be changed."""
    return shutil.copytree(trained, tmp_path / "run")


def card_of(run, model="model") -> str:
    return model_card(run / model, "me/tiny")


def change(file: Path, **content) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | content))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def row(card: str, begin: str) -> list[str]:
    """The cells of the one row of a table that begins so."""
    found = [line for line in card.splitlines() if line.startswith(f"| {begin} |")]
    assert len(found) == 1, found
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_the_hub_is_told_what_it_sorts_models_by(run):
    assert front_matter(card_of(run)) == {
        "license": "unknown",
        "library_name": "nanovlm",
        "pipeline_tag": "image-text-to-text",
    }


def test_weights_and_data_from_the_hub_are_named_to_it_and_folders_are_not(run):
    config = run / "model" / "config.json"
    content = json.loads(config.read_text())
    content["vision_encoder"]["weights"] = "google/siglip-base-patch16-224"
    content["language_decoder"]["weights"] = "/home/me/models/SmolLM2-135M"
    config.write_text(json.dumps(content))
    replace(run / "experiment.yaml", "name: shapes", "name: the_cauldron\n    source: HuggingFaceM4/the_cauldron")
    card = card_of(run)
    found = front_matter(card)
    assert found["base_model"] == ["google/siglip-base-patch16-224"]
    assert found["datasets"] == ["HuggingFaceM4/the_cauldron"]
    assert row(card, "language decoder")[2] == ".../SmolLM2-135M"
    assert "/home" not in card
    assert row(card, "the_cauldron")[1] == "HuggingFaceM4/the_cauldron"


def test_results_are_those_of_the_runs_answers_with_intervals_and_controls(run):
    file = run / "evaluation" / "shapes" / "3.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line | {"score": float(i < 5)}) + "\n" for i, line in enumerate(lines)))
    summary = json.loads((run / "summary.json").read_text())
    summary["benchmarks"]["shapes"]["controls"] = {"shuffled": 0.25, "no_image": 0.125}
    change(run / "summary.json", **summary)
    scores = [item.score for item in read_items(file)]
    low, high = wilson_interval(scores)
    card = card_of(run)
    accuracy = f"{100 * sum(scores) / len(scores):.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert "Accuracy on shapes, 8 questions" in card
    assert "| quickstart | 62.5 " in card
    assert f"| quickstart | {accuracy} | 25.0 | 12.5 |" in card
    assert "it does not look" not in card
    assert "shapes (8 questions)" in card


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({"no_image": 0.75}, "shapes: does no better than without pictures (75.0 %): it does not look."),
        ({}, "shapes: was not asked without pictures, so nothing says that it looks."),
    ],
)
def test_an_accuracy_that_means_nothing_is_said_to(run, controls, said):
    summary = json.loads((run / "summary.json").read_text())
    summary["benchmarks"]["shapes"]["controls"] = controls
    change(run / "summary.json", **summary)
    card = card_of(run)
    assert said in card
    assert card.index(said) < card.index("**Accuracy on shapes")


def test_a_benchmarks_own_figures_are_said(run):
    summary = json.loads((run / "summary.json").read_text())
    summary["benchmarks"]["shapes"] |= {"text_gain": 0.125, "lucky_accuracy": 0.5, "lucky_ci95": [0.25, 0.75]}
    change(run / "summary.json", **summary)
    card = card_of(run)
    assert row(card, "text gain")[1] == "12.5 %"
    assert row(card, "lucky accuracy")[1] == "50.0 % [25.0, 75.0]"


def test_training_and_data_are_those_of_the_run(run):
    change(run / "summary.json", skipped={"too long": 5, "a broken picture": 7}, given={"data.train.0": 24})
    change(run / "summary.json", precision="bf16", ranks=4, lost_updates=2, wholly_skipped=["data.train.1: all 3"])
    card = card_of(run)
    assert "Samples skipped, by reason: 7 a broken picture, 5 too long." in card
    assert "Nothing used: data.train.1: all 3." in card
    assert "| shapes | 1 | 24 |" in card
    assert row(card, "budget")[1] == "3 steps"
    assert row(card, "samples seen")[1] == "24"
    assert row(card, "precision")[1] == "bf16"
    assert row(card, "hardware")[1].endswith(", 4 processes")
    assert row(card, "updates lost to overflow")[1] == "2"
    assert row(card, "seed")[1] == "4"
    made = json.loads((run / "provenance.json").read_text())
    assert made["source"] in card
    assert made["data_order"] in card
    assert f"torch {made['versions']['torch']}" in card


def test_what_the_files_do_not_say_the_card_does_not_either(run):
    summary = json.loads((run / "summary.json").read_text())
    kept = {key: summary[key] for key in ("steps", "samples", "benchmarks")}
    (run / "summary.json").write_text(json.dumps(kept))
    (run / "provenance.json").unlink()
    card = card_of(run)
    for unknown in ("| hardware |", "| wall time |", "| precision |", "| peak memory |", "Samples skipped", "commit"):
        assert unknown not in card
    assert "| shapes | 1 | not known |" in card
    assert "The run's provenance.json is gone." in card


def test_the_best_model_has_not_the_last_ones_results(run):
    assert "Accuracy on shapes" in card_of(run, "model-best")  # the last one is the best
    change(run / "summary.json", best_step=2, best_validation_loss=5.25)
    card = card_of(run, "model-best")
    assert (
        "These are the weights of step 2, with the lowest validation loss of 5.250; the run measured its last weights, "
        "of step 3, on benchmarks, and not these." in card
    )
    assert "Accuracy" not in card
    assert "Measured: " not in card
    assert "Accuracy on shapes" in card_of(run)


def test_of_a_run_that_has_not_finished_only_the_recipe_is_known(run):
    (run / "summary.json").unlink()
    card = card_of(run, "model-best")
    assert "The run has not finished, so nothing is known of how good these weights are." in card
    assert row(card, "budget")[1] == "3 steps"
    assert "Accuracy" not in card
    assert "samples seen |" not in card.replace("| dataset | weight | samples seen |", "")


def test_a_model_without_its_run_is_said_to_be_unknown(run, tmp_path):
    alone = shutil.copytree(run / "model", tmp_path / "elsewhere" / "model")
    card = model_card(alone, "me/tiny")
    assert card.count("This model came without the folder of a run, so nothing is known here of its data") == 1
    for title in ("## Training", "## Data", "## Recipe", "## Where it comes from"):
        assert title not in card
    assert "Accuracy" not in card


def test_a_run_that_measured_nothing_is_said_to(tmp_path):
    train(tiny_experiment("benchmarks=[]"), tmp_path / "run")
    card = card_of(tmp_path / "run")
    assert "The run measured nothing: it had no benchmark, and held out no samples." in card
    assert "Measured: no benchmark. Not measured: everything else" in card


def test_the_parameters_are_counted_in_the_weights_themselves(run):
    from nanovlm import VisionLanguageModel

    model = VisionLanguageModel.from_pretrained(run / "model")
    card = card_of(run)
    for role in ("vision_encoder", "projector", "language_decoder"):
        count = sum(parameter.numel() for parameter in getattr(model, role).parameters())
        assert row(card, role.replace("_", " "))[3:] == [f"{count:,}", "F32"]
    assert f"of {sum(parameter.numel() for parameter in model.parameters()):,} parameters" in card


def test_damaged_weights_are_named(run):
    file = run / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        card_of(run)


def test_the_recipe_is_an_experiment_that_trains_again(run, tmp_path):
    text = re.search(r"^## Recipe$.*?^```yaml\n(.*?)^```$", card_of(run), re.DOTALL | re.MULTILINE)[1]
    (tmp_path / "experiment.yaml").write_text(text)
    again = load_experiment(tmp_path / "experiment.yaml").model_dump()
    assert again | {"trackers": []} == load_experiment(run / "experiment.yaml").model_dump() | {"trackers": []}


def test_the_lines_of_python_do_what_they_promise(run, tmp_path, monkeypatch, capsys):
    program = re.search(r"^```python\n(.*?)^```$", card_of(run), re.DOTALL | re.MULTILINE)[1]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("picture.png")
    exec(program.replace("me/tiny", str(run / "model")), {})
    assert capsys.readouterr().out.endswith("\n")


def test_the_command_does_what_it_promises(run, tmp_path, monkeypatch):
    import shlex

    from command import nanovlm

    command = re.search(r"^nanovlm (generate .*)$", card_of(run), re.MULTILINE)[1]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("picture.png")
    assert nanovlm(*shlex.split(command.replace("me/tiny", str(run / "model")))).status == 0


def test_a_component_from_elsewhere_is_said_to_be_needed(run):
    config = json.loads((run / "model" / "config.json").read_text())
    origin = {"module": "own", "sha256": "a" * 64}
    config["plugins"]["projector"] = origin | {"distribution": "own", "version": ""}
    config["plugins"]["vision_encoder"] = origin | {"distribution": "vlm-extras", "version": "1.2"}
    (run / "model" / "config.json").write_text(json.dumps(config))
    card = card_of(run)
    assert f"Its projector pixel_shuffle is in a file of its own, own.py (SHA-256 {'a' * 64}), which is not in" in card
    assert "Its vision encoder siglip comes with vlm-extras 1.2, which must be installed." in card


def test_names_are_shown_as_they_are(run):
    replace(run / "experiment.yaml", "name: quickstart", "name: 'a|b <b>c'")
    card = card_of(run)
    assert "| a\\|b \\<b>c |" in card


def test_what_was_done_to_the_model_since_is_said(run):
    card = model_card(run / "model", "me/tiny", changes=["LoRA was merged."])
    assert "LoRA was merged." in card
