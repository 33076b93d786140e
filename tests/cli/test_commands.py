import importlib.metadata
import json
import shutil
import subprocess
import sys

import pytest
from command import nanovlm
from nanovlm_plugins.shapes import Shapes
from PIL import Image, ImageChops
from tiny import QUICKSTART, SIZES

from nanovlm import VisionLanguageModel
from nanovlm.evaluation import evaluator

# train


def test_training_shows_how_far_it_is(trained):
    lines = [line for line in trained.printed.splitlines() if line.startswith("step ")]
    assert [line.split()[1].rstrip(":") for line in lines] == ["1/3", "2/3", "3/3", "3"]
    for piece in ("loss ", " samples/s", " tokens/s", " s left"):
        assert piece in lines[0]


def test_the_report_has_the_figures_of_the_summary(trained):
    summary = trained.summary
    shapes = summary["benchmarks"]["shapes"]
    low, high = shapes["ci95"]
    report = trained.printed.partition("\n\n")[2]
    assert "24 samples in 3 steps" in report
    assert f"{summary['samples_per_second']:,.0f} samples/s, {summary['tokens_per_second']:,.0f} tokens/s" in report
    assert f"peak memory {summary['peak_memory_bytes'] / 2**30:.1f} GiB" in report
    assert f"shapes: accuracy {shapes['accuracy']:.1%} [{low:.1%}, {high:.1%}] on 8 questions" in report
    assert f"pictures shuffled between them: {shapes['controls']['shuffled']:.1%}" in report
    assert f"without pictures: {shapes['controls']['no_image']:.1%}" in report


def test_the_report_counts_what_was_skipped(odd):
    first = odd.summary["first_skipped"]["odd one out"]
    assert f"skipped samples: 2 odd one out (first {first})\n" in odd.printed  # one of 16 is broken; 24 were asked for
    assert odd.summary["skipped"] == {"odd one out": 2}


def test_the_report_says_where_everything_is(trained):
    assert all(place.exists() for place in trained.places)
    names = {str(place.relative_to(trained.folder)) for place in trained.places}
    assert names >= {"summary.json", "metrics.jsonl", "model", "evaluation/shapes/3.jsonl", "evaluation/shapes/3.png"}


@pytest.mark.parametrize("run", ["trained", "odd"])
@pytest.mark.parametrize("verb", ["generate", "evaluate", "train"])
def test_the_next_commands_work_as_they_are_printed(run, verb, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [command for command in request.getfixturevalue(run).next_commands if command[0] == verb]
    assert commands
    for command in commands:
        status, _, errors = nanovlm(*command)
        assert (status, errors) == (0, "")


def test_the_next_commands_ask_the_runs_own_question_about_its_own_picture(trained):
    command = trained.next_commands[0]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    first = Shapes(Shapes.Config(test_size=8, image_size=16), "test")[0]
    assert options["--prompt"] == first.turns[0].user
    assert ImageChops.difference(Image.open(options["--image"]), first.images[0]).getbbox() is None


def test_the_next_commands_suit_another_experiment(odd):
    generate, *evaluate, train = odd.next_commands
    plugin = ["--plugin", str(odd.folder / "faulty_plugin.py")]
    assert generate[generate.index("--prompt") + 1].endswith("D: grey\nAnswer with the letter.")
    assert [command[3] for command in evaluate] == ["mmstar", "shapes", "shapes-2"]
    assert train == ["train", str(odd.folder / "experiment.yaml"), "seed=4", *plugin]
    assert all(command[-2:] == plugin for command in odd.next_commands)


def test_a_run_that_nobody_asked_about_pictures_suggests_no_picture(tmp_path, trained):
    experiment = trained.folder / "experiment.yaml"
    done = nanovlm("train", experiment, "benchmarks=[]", "training.steps=1", "--run-dir", tmp_path / "run")
    assert done.status == 0
    assert "nanovlm generate" not in done.out
    assert "seed=1" in done.out


# evaluate


@pytest.mark.parametrize("place", [".", "model"])
def test_evaluating_a_run_gives_its_own_result(trained, place):
    shapes = trained.summary["benchmarks"]["shapes"]
    done = nanovlm("evaluate", trained.folder / place, "--json")
    assert json.loads(done.out) == {"benchmark": "shapes", **shapes}


def test_evaluating_prints_the_result_in_words(trained):
    shapes = trained.summary["benchmarks"]["shapes"]
    lines = nanovlm("evaluate", trained.folder).out.splitlines()
    assert lines[0].startswith(f"shapes: accuracy {shapes['accuracy']:.1%} [")
    assert f"  the same questions, without pictures: {shapes['controls']['no_image']:.1%}" in lines
    table = [line.split() for line in lines[lines.index(next(line for line in lines if "category" in line)) :]]
    counts, accuracies = shapes["questions_by_category"], shapes["categories"]
    rows = [[name, str(counts[name]), f"{accuracies[name]:.1%}"] for name in sorted(accuracies)]
    assert table == [["category", "questions", "accuracy"], *rows]
    assert len(rows) > 1


@pytest.mark.parametrize(
    ("arguments", "questions"),
    [
        ([], ["mmstar", 2]),
        (["--benchmark", "shapes"], ["shapes", 4]),
        (["--benchmark", "shapes-2"], ["shapes-2", 2]),
        (["--benchmark", "shapes-2", "--limit", "3"], ["shapes-2", 3]),
        (["--benchmark", "shapes-2", "--limit", "0"], ["shapes-2", 5]),
        (["--benchmark", "shapes", "--limit", "99"], ["shapes", 4]),
        (["--benchmark", "shapes", "test_size=3"], ["shapes", 3]),
        (["--benchmark", "shapes", "benchmark.test_size=3"], ["shapes", 3]),  # as messages spell it
        (["--benchmark", "the_cauldron", "source=tiny"], None),  # for training only
    ],
)
def test_benchmarks_are_the_runs_own_by_default(odd, arguments, questions):
    done = nanovlm("evaluate", odd.folder, *arguments, "--no-controls", "--json")
    assert done.status == (0 if questions else 2)
    if questions:
        result = json.loads(done.out)
        assert [result["benchmark"], result["questions"]] == questions
        assert result["controls"] == {}


def test_pictures_are_shuffled_as_they_were_in_the_run(odd, monkeypatch):
    seeds = []
    monkeypatch.setattr(evaluator, "shuffled", lambda samples, seed: seeds.append(seed) or list(samples))
    assert nanovlm("evaluate", odd.folder, "--benchmark", "shapes").status == 0
    assert seeds == [5]


def test_a_model_outside_any_run_is_evaluated_on_what_is_named(trained, tmp_path):
    shutil.copytree(trained.folder / "model", tmp_path / "alone")
    options = ["--benchmark", "shapes", "test_size=3", "image_size=16"]
    assert json.loads(nanovlm("evaluate", tmp_path / "alone", *options, "--json").out)["questions"] == 3
    status, _, errors = nanovlm("evaluate", tmp_path / "alone")
    assert status == 2
    assert "--benchmark NAME is missing" in errors


def test_items_are_written_where_they_are_wanted(trained, tmp_path):
    file = tmp_path / "items" / "here.jsonl"
    assert nanovlm("evaluate", trained.folder, "--limit", "2", "--no-controls", "--output", file).status == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["shapes-0-test-0", "shapes-0-test-1"]
    assert [path.name for path in file.parent.iterdir()] == ["here.jsonl"]


# generate


@pytest.mark.parametrize("marks", ["", "<image> and <image>: "])
def test_generate_prints_what_the_model_says(trained, tmp_path, marks):
    files = [tmp_path / f"{colour}.png" for colour in ("red", "blue")]
    for file in files:
        Image.new("RGB", (20, 20), file.stem).save(file)
    model = VisionLanguageModel.from_pretrained(trained.folder / "model")
    said = model.generate(f"{marks}What?", files, max_new_tokens=5)
    pictures = [word for file in files for word in ("--image", file)]
    arguments = ["--model", trained.folder, "--prompt", f"{marks}What?", *pictures, "--max-new-tokens", 5]
    assert nanovlm("generate", *arguments).out == f"{said}\n"


# plan


def test_a_plan_prints_what_the_experiment_takes():
    plan = json.loads(nanovlm("plan", QUICKSTART, *SIZES, "--json").out)
    out = nanovlm("plan", QUICKSTART, *SIZES).out
    rows = dict(tuple(cell.strip() for cell in line.strip("│").split("│")) for line in out.splitlines() if "│" in line)
    for role, count in plan["parameters"].items():
        assert rows[f"parameters of the {role.replace('_', ' ')}"] == f"{count:,}"
    assert rows["parameters in all"] == f"{plan['total_parameters']:,}"
    assert rows["image tokens an image"] == "4"
    assert rows["longest sample with one image"] == f"{plan['longest_sample']} tokens"
    assert rows["GPU memory for training (estimate, bf16)"].endswith("GiB")
    assert rows["would be downloaded"] == "nothing"


def test_a_plan_takes_overrides():
    done = nanovlm("plan", QUICKSTART, *SIZES, "projector.factor=4", "training.precision=fp32", "--json")
    plan = json.loads(done.out)
    assert (plan["image_tokens"], plan["precision"], plan["name"]) == (1, "fp32", "quickstart")
    assert plan["total_parameters"] == sum(plan["parameters"].values())


# all of them


@pytest.mark.parametrize("command", ["train", "evaluate", "generate", "plan", "list"])
def test_every_command_explains_its_arguments(command):
    status, out, _ = nanovlm(command, "--help")
    assert status == 0
    assert f"Usage: nanovlm {command}" in out
    assert "projector.factor" not in out or command in ("train", "plan")  # what can be overridden there


def test_the_help_names_every_command():
    out = nanovlm("--help").out
    assert all(f" {command} " in out for command in ("train", "evaluate", "generate", "plan", "list"))


def test_a_bug_in_a_plugin_is_no_fault_of_the_users(rival):
    arguments = ["plan", QUICKSTART, "projector={name: shapes, needed: 1}", "--plugin", rival]
    with pytest.raises(ZeroDivisionError):
        nanovlm(*arguments)
    done = subprocess.run([sys.executable, "-m", "nanovlm", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "config.needed / 0" in done.stderr


def test_a_reader_that_goes_away_is_no_bug():
    writer = subprocess.Popen([sys.executable, "-m", "nanovlm", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.close()
    assert b"Traceback" not in writer.stderr.read()
    assert writer.wait() == 1


def test_the_version_is_the_installed_one():
    assert nanovlm("--version") == (0, f"nanovlm {importlib.metadata.version('nanovlm')}\n", "")
