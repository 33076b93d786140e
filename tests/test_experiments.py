"""Every file in ``experiments/``, whoever wrote it: it is planned without network, and trains at tiny size.

Those that ask for several runs are in ``lab/test_ablation_files.py``.
"""

import json
import math
from pathlib import Path

import pytest
from command import nanovlm

from nanovlm import VisionLanguageModel, load_experiment, load_plugins, train
from nanovlm.blueprint import ROLES, Recipe
from nanovlm.experiment import read_experiment
from nanovlm.merging import ABLATE
from nanovlm.planning import plan

FOLDER = Path(__file__).parents[1] / "experiments"
FILES = [file for file in sorted(FOLDER.rglob("*.yaml")) if ABLATE not in read_experiment(file)]
REGISTRIES = load_plugins()

every_experiment = pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(FOLDER)) for file in FILES])


def tiny_options(experiment) -> list[str]:
    """Overrides that make every component of an experiment tiny, and leave its choices as they are."""
    kinds = {
        "vision_encoder": REGISTRIES.vision_encoders,
        "projector": REGISTRIES.projectors,
        "language_decoder": REGISTRIES.language_decoders,
    }
    places = [(role, kinds[role], getattr(experiment, role)) for role in ROLES]
    places += [(f"data.train.{i}", REGISTRIES.datasets, choice) for i, choice in enumerate(experiment.data.train)]
    places += [(f"benchmarks.{i}", REGISTRIES.datasets, choice) for i, choice in enumerate(experiment.benchmarks)]
    return [
        f"{place}.{option}={json.dumps(value)}"
        for place, registry, choice in places
        for option, value in registry.find(choice.name).cls.Config.tiny().model_dump().items()
    ]


def tiny_overrides(experiment) -> list[str]:
    """Overrides that make a training of an experiment tiny."""
    return [
        *tiny_options(experiment),
        f"data.max_text_tokens={min(experiment.data.max_text_tokens, 128)}",
        "data.max_images=1",
        "data.validation.share=0",
        "data.workers=0",
        "training.steps=2",
        "training.samples_per_step=2",
        "device=cpu",
        "trackers=[]",
    ]


def test_the_two_that_the_readme_names_are_there():
    assert {"quickstart.yaml", "baseline.yaml"} <= {file.name for file in FILES}


def test_the_baseline_without_network_names_all_that_is_to_be_pointed_at_folders(tmp_path):
    done = nanovlm("train", FOLDER / "baseline.yaml", "--run-dir", tmp_path / "run")
    assert done.status == 2
    places = ("vision_encoder.weights", "language_decoder.weights", "data.train.0.source", "benchmarks.0.source")
    fixes = [f"  Without network, point it at a folder: {place}=FOLDER" for place in places]
    assert [line for line in done.err.splitlines() if line.startswith("  ")] == fixes
    assert done.err.count("is no folder here, and it is not in the cache of the Hugging Face hub") == len(places)
    assert not (tmp_path / "run").exists()


def test_what_a_folder_lacks_is_said_before_anything_else_is_fetched(tmp_path):
    """Only where there is no network do we go on: else a typing error would be told after the whole download."""
    done = nanovlm("train", FOLDER / "baseline.yaml", f"vision_encoder.weights={tmp_path}")
    assert done.status == 2
    assert "vision_encoder" in done.err
    assert "data.train.0.source" not in done.err


def test_the_baseline_is_the_seeds_recipe():
    """What makes the run comparable with 35.3 %, whatever the defaults become."""
    recipe = Recipe.of(load_experiment(FOLDER / "baseline.yaml"), REGISTRIES).dump()
    training, data = recipe["training"], recipe["data"]
    assert (training["epochs"], training["samples_per_step"], training["precision"]) == (5, 256, "bf16")
    assert (training["warmup"], training["final_learning_rate"]) == (0.03, 0.1)
    assert (training["weight_decay"], training["max_grad_norm"]) == (dict.fromkeys(ROLES, 0.01), 0)
    assert training["learning_rate"] == {"projector": 2e-3, "vision_encoder": 1e-4, "language_decoder": 1e-4}
    assert (data["turns"], data["max_text_tokens"], data["max_images"]) == ("first", 79, 1)
    assert len(data["train"][0]["subsets"]) == 45
    assert data["train"][0]["images"] == "first"
    assert (data["validation"]["every"], recipe["benchmarks"][0]["every"]) == (250, 250)
    assert recipe["benchmarks"][0]["limit"] == 0


@every_experiment
def test_it_is_planned_without_network(file):
    planned = plan(Recipe.of(load_experiment(file), REGISTRIES))
    assert planned.name == file.stem
    assert planned.trained_parameters > 0
    assert planned.longest_sample <= load_experiment(file).training.tokens_per_row


@every_experiment
def test_everything_that_it_may_download_is_written_out(file):
    """DESIGN: weights and sources of the hub stand in the file, and come from no default."""
    experiment = load_experiment(file)
    for choice, registry in [
        (experiment.vision_encoder, REGISTRIES.vision_encoders),
        (experiment.language_decoder, REGISTRIES.language_decoders),
        *((choice, REGISTRIES.datasets) for choice in (*experiment.data.train, *experiment.benchmarks)),
    ]:
        fields = registry.find(choice.name).cls.Config.model_fields
        options = {name for name in ("weights", "source") if name in fields and fields[name].annotation is str}
        assert options <= choice.options.keys()  # a dataset's weights by subset are numbers, not files


@every_experiment
def test_it_trains_at_tiny_size(file, tmp_path):
    experiment = load_experiment(file, tiny_overrides(load_experiment(file)))
    summary = train(experiment, tmp_path / "run")
    assert (summary["name"], summary["steps"]) == (file.stem, 2)
    assert len(summary["benchmarks"]) == len(experiment.benchmarks)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if step["event"] == "step"]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert isinstance(VisionLanguageModel.from_pretrained(tmp_path / "run" / "model").generate("What?"), str)
