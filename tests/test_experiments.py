"""Every file in ``experiments/``, whoever wrote it: it is planned without network, and trains at tiny size."""

import json
import math
from pathlib import Path

import pytest

from nanovlm import VisionLanguageModel, load_experiment, load_plugins, train
from nanovlm.blueprint import ROLES, Recipe
from nanovlm.planning import plan

FOLDER = Path(__file__).parents[1] / "experiments"
FILES = sorted(FOLDER.rglob("*.yaml"))
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


def tiny_variant(file: Path):
    experiment = load_experiment(file)
    longest = min(experiment.data.max_text_tokens, 128)
    return load_experiment(
        file,
        [
            *tiny_options(experiment),
            f"data.max_text_tokens={longest}",
            "data.max_images=1",
            "data.validation.share=0",
            "data.workers=0",
            "training.steps=2",
            "training.samples_per_step=2",
            "device=cpu",
            "trackers=[]",
        ],
    )


def test_the_two_that_the_readme_names_are_there():
    assert {"quickstart.yaml", "baseline.yaml"} <= {file.name for file in FILES}


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
        options = registry.find(choice.name).cls.Config.model_fields.keys() & {"weights", "source"}
        assert options <= choice.options.keys()


@every_experiment
def test_it_trains_at_tiny_size(file, tmp_path):
    experiment = tiny_variant(file)
    summary = train(experiment, tmp_path / "run")
    assert (summary["name"], summary["steps"]) == (file.stem, 2)
    assert len(summary["benchmarks"]) == len(experiment.benchmarks)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if step["event"] == "step"]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert isinstance(VisionLanguageModel.from_pretrained(tmp_path / "run" / "model").generate("What?"), str)
