"""A model card: what a run's own files say of a model, and nothing that they do not say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanovlm.blueprint import ROLES
from nanovlm.data.tally import describe
from nanovlm.evaluation.evaluator import numbered
from nanovlm.hub import HubError, check_hub_id, local_folder
from nanovlm.interop.card_tables import (
    components_table,
    datasets_table,
    facts,
    sizes,
    training_table,
    without_places,
)
from nanovlm.interop.origin import Origin
from nanovlm.lab.compare import compare
from nanovlm.lab.report.markdown import escaped, section_lines
from nanovlm.lab.report.sections import READING, Section
from nanovlm.lab.report.tables import Table, accuracy_table, category_table, percent, validation_table
from nanovlm.lab.results import Result
from nanovlm.lab.statistics import Estimate
from nanovlm.lab.verdict import percent as share_in_words
from nanovlm.model_folder import read_config
from nanovlm.recorded_plugins import resumptions
from nanovlm.weights import read_json
from nanovlm.yaml_reader import dump_yaml

CARD = "README.md"
OUR_OWN = "nanovlm"  # the distribution that the default plugins come with
NOTHING_KNOWN = (
    "This model came without the folder of a run, so nothing is known here of its data, its training and its results."
)
USE = """```bash
pip install -e .   # in a clone of nanovlm
nanovlm generate --model {repo} --image picture.png --prompt "What is in the picture?"
```

```python
from nanovlm import VisionLanguageModel

model = VisionLanguageModel.from_pretrained("{repo}")
print(model.generate("What is in the picture?", ["picture.png"]))
```
"""


def model_card(folder: Path, repo: str, origin: Origin | None = None, changes: Sequence[str] = ()) -> str:
    """The ``README.md`` of a model folder as it would lie in ``repo``: Markdown, with YAML in front for the hub.

    origin: what is known of its training; by default what the run says that the folder lies in
    changes: what was done to the model since (sentences)

    Raises CheckpointError where the folder is no model's.
    """
    source = origin or Origin.of(folder)
    own = {role: {"name": part.name, **part.options} for role, part in read_config(folder).items()}
    parts = without_places(own)
    lines = ["---", dump_yaml(front_matter(own, source)).rstrip(), "---", ""]
    lines += [f"# {escaped(repo.rpartition('/')[2])}", "", escaped(introduction(parts, folder)), ""]
    for section in (
        Section("Results", *results(source)),
        Section("Use", [*foreign_plugins(folder, parts)]),
        Section("Model", [*changes], [components_table(parts, folder)]),
        Section("Training", *training(source)),
        Section("Data", *data(source)),
        Section("Limits", [*limits(source, folder)]),
        Section("Where it comes from", *provenance(source)),
    ):
        if not section.is_empty or section.title == "Use":
            lines += section_lines(section)
        if section.title == "Use":
            lines += [USE.format(repo=repo)]
    return "\n".join([*lines, *recipe(source)])


def front_matter(parts: Mapping[str, Any], source: Origin) -> dict[str, Any]:
    """What the hub sorts models by. Nobody has told a licence, and the hub's word for that is ``unknown``."""
    base = [str(part.get("weights", "")) for part in parts.values()]
    trained_on = [str(dataset.get("source", "")) for dataset in source.experiment.get("data", {}).get("train", [])]
    found: dict[str, Any] = {
        "license": "unknown",
        "library_name": "nanovlm",
        "pipeline_tag": "image-text-to-text",
        "base_model": hub_ids(base),
        "datasets": hub_ids(trained_on),
    }
    return {key: value for key, value in found.items() if value}


def hub_ids(names: Sequence[str]) -> list[str]:
    """Those that name something on the hub: no folder or file here, and no word such as ``random``."""
    return [name for name in dict.fromkeys(names) if is_hub_id(name)]


def is_hub_id(name: str) -> bool:
    if "/" not in name or local_folder(name):
        return False
    try:
        check_hub_id(name, "weights")
    except HubError:
        return False
    return True


def introduction(parts: Mapping[str, Any], folder: Path) -> str:
    count = sum(number for number, _ in sizes(folder).values())
    made_of = " + ".join(str(parts[role]["name"]) for role in ROLES)
    return (
        f"A vision-language model of {count:,} parameters: {made_of}. It takes pictures and text, and answers in text; "
        "made with nanovlm, a research playground for small vision-language models."
    )


def results(source: Origin) -> tuple[list[str], list[Table]]:
    """Accuracies with their intervals, controls beside them, and what makes them doubtful."""
    run = source.measured
    if source.run is None:
        return [NOTHING_KNOWN], []
    if run is None:
        return [not_measured(source)], []
    if not (run.items or run.losses):
        return ["The run measured nothing: it had no benchmark, and held out no samples."], []
    name = str(run.experiment["name"])
    comparison = compare({name: [run]}, name, name)
    scores = comparison.variants[0].scores
    doubts = [f"{benchmark}: {flag}." for benchmark, score in scores.items() for flag in score.flags]
    tables = [accuracy_table(comparison, benchmark) for benchmark in scores]
    tables += [found for benchmark in scores if (found := measures_table(run, benchmark))]
    tables += [found for benchmark in scores if (found := category_table(comparison, benchmark))]
    losses = validation_table(comparison)
    reading = [
        f"Of step {source.step:,}, the run's last. Intervals are 95 %, over the choice of questions alone: it is one "
        "run with one seed, and another seed may do better or worse.",
        *([READING[-1]] if any(score.controls for score in scores.values()) else []),
    ]
    return [*doubts, *reading], [*tables, *([losses] if losses else [])]


def not_measured(source: Origin) -> str:
    if source.result is None:
        return "The run has not finished, so nothing is known of how good these weights are."
    step = "an unknown step" if source.step is None else f"step {source.step:,}"
    loss = source.summary.get("best_validation_loss")
    found = "" if loss is None else f" of {loss:.3f}"
    return (
        f"These are the weights of {step}, with the lowest validation loss{found}; the run measured its last weights, "
        f"of step {source.summary['steps']:,}, on benchmarks, and not these."
    )


def measures_table(run: Result, benchmark: str) -> Table | None:
    """The benchmark's own figures (see ``Benchmark.measures``)."""
    summary = run.summary["benchmarks"][benchmark]
    found = {}
    for key, value in summary.items():
        if isinstance(value, float) and key != "accuracy":
            interval = summary.get(key.removesuffix("accuracy") + "ci95") if key.endswith("accuracy") else None
            found[key.replace("_", " ")] = percent(Estimate(value, *(interval or ())))
    return facts(f"More of {benchmark}", found) if found else None


def foreign_plugins(folder: Path, parts: Mapping[str, Any]) -> Iterator[str]:
    """What must be installed, or named, before the model can be loaded."""
    plugins: Any = read_json(folder / "config.json").get("plugins", {})
    for role in ROLES:
        plugin = plugins.get(role, {})
        distribution, version = plugin.get("distribution", OUR_OWN), plugin.get("version", "")
        what = f"Its {role.replace('_', ' ')} {parts[role]['name']}"
        if distribution != OUR_OWN and version:
            yield f"{what} comes with {distribution} {version}, which must be installed."
        elif distribution != OUR_OWN:
            yield (
                f"{what} is in a file of its own, {plugin.get('module')}.py (SHA-256 {plugin.get('sha256')}), which "
                "is not in this repository: name it by --plugin."
            )


def training(source: Origin) -> tuple[list[str], list[Table]]:
    if source.run is None:
        return [], []
    experiment = without_places(source.experiment)
    return [], [training_table(experiment, source.summary, source.provenance)]


def data(source: Origin) -> tuple[list[str], list[Table]]:
    """What the run was trained and asked on, and what became of the samples."""
    if source.run is None:
        return [], []
    experiment, summary = without_places(source.experiment), source.summary
    texts = [
        f"{words}: {describe(Counter(summary[key]))}."
        for key, words in (
            ("skipped", "Samples skipped, by reason"),
            ("turns_left_out", "Turns of conversations left out, by reason"),
            ("validation_skipped", "Held-out samples skipped, by reason"),
        )
        if key in summary
    ]
    texts += [f"Nothing used: {sentence}." for sentence in summary.get("wholly_skipped", ())]
    share = experiment["data"]["validation"]["share"]
    texts.append(
        f"Held out for validation: {share_in_words(share)} of the training samples, chosen by a hash of their ids."
    )
    chosen = experiment["benchmarks"]
    names = numbered([benchmark["name"] for benchmark in chosen])
    asked = {
        name: str(benchmark.get("source", "made by its plugin")) for name, benchmark in zip(names, chosen, strict=True)
    }
    tables = [datasets_table(experiment, summary.get("given"))]
    return texts, [*tables, *([facts("Asked on", asked)] if asked else [])]


def limits(source: Origin, folder: Path) -> Iterator[str]:
    count = sum(number for number, _ in sizes(folder).values())
    yield (
        f"A research model, and a small one ({count:,} parameters): expect it to be wrong, and not to say so. No check "
        "for bias, for harmful answers or for what it says of people is recorded: decide nothing by it."
    )
    if source.measured:
        benchmarks = source.measured.summary["benchmarks"]
        asked = ", ".join(f"{name} ({found['questions']:,} questions)" for name, found in benchmarks.items())
        yield f"Measured: {asked or 'no benchmark'}. Not measured: everything else, other languages among it."
        if benchmarks:
            yield "Whether questions of a benchmark, or their pictures, are among the training data was not checked."
    yield (
        "No licence was told with the weights. Those of the weights that it began from, and of the data that it saw, "
        "may bind whoever uses it."
    )


def provenance(source: Origin) -> tuple[list[str], list[Table]]:
    """Code, versions, plugins and hashes, from the run's ``provenance.json``."""
    made = source.provenance
    if not made:
        return ["The run's provenance.json is gone."] if source.run else [], []
    texts = [f"Resumed after step {resumed['step']:,}, {code(resumed)}." for resumed in resumptions(made)]
    versions = ", ".join(f"{package} {version}" for package, version in made.get("versions", {}).items())
    rows: dict[str, str | None] = {"code": code(made), "versions": versions}
    for plugin in made.get("plugins", ()):
        where = " ".join(filter(None, (plugin.get("distribution"), plugin.get("version"))))
        used = ", ".join(plugin.get("used_for", ()))
        rows[f"plugin {plugin['module']}"] = f"{where}, for {used}, SHA-256 {plugin.get('sha256')}"
    rows |= {"hash of the samples": made.get("data"), "hash of their order": made.get("data_order")}
    for role, digest in made.get("initial_weights", {}).items():
        rows[f"hash of the initial {role.replace('_', ' ')}"] = digest
    return texts, [facts("What the run recorded", rows)]


def code(made: Mapping[str, Any]) -> str:
    """The state of nanovlm's code: its commit where there was one, and always a hash."""
    git = made.get("git", {})
    commit = f"commit {git['commit']}{', changed since' if git.get('changed') else ''}, " if "commit" in git else ""
    return f"{commit}hash of the source {made.get('source', 'not known')}"


def recipe(source: Origin) -> list[str]:
    """The experiment, to be run again; who watched the run is left out, and where on a machine things were."""
    if source.run is None:
        return []
    experiment = {key: value for key, value in without_places(source.experiment).items() if key != "trackers"}
    text = dump_yaml(experiment)
    fence = "```" if "```" not in text else "~" * 9
    said = "The resolved experiment: saved as `experiment.yaml`, `nanovlm train experiment.yaml` trains it again."
    return ["## Recipe", "", said, "", f"{fence}yaml", text.rstrip(), fence, ""]
