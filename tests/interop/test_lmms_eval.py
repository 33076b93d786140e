"""lmms-eval asks a model of ours by its own means, on a small task of this machine, and reports have the results."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from command import nanovlm
from PIL import Image
from tiny import tiny_experiment

from nanovlm import VisionLanguageModel, train
from nanovlm.data.dataset import Turn
from nanovlm.data.images import stack_images
from nanovlm.data.packing import Example, pack_row
from nanovlm.evaluation.evaluator import read_items
from nanovlm.evaluation.metrics import wilson_interval
from nanovlm.generation import Prompt, generate
from nanovlm.interop.model_card import model_card
from nanovlm.lab.results import Result

pytest.importorskip("lmms_eval", reason='lmms-eval is not installed: pip install "nanovlm[lmms-eval]"')

from nanovlm.errors import ConfigError
from nanovlm.interop.lmms_eval_model import NAME, NanoVLM, cut

STEPS = 3  # of a tiny run
QUESTIONS = 5
OWN = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: question
doc_to_target: answer
doc_to_visual: !function helpers.pictures
"""
GENERATE = """
output_type: generate_until
generation_kwargs: {max_new_tokens: 6, until: [], do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
output_type: multiple_choice
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
UNSCORED = """
output_type: generate_until
generation_kwargs: {max_new_tokens: 2, until: []}
process_results: !function helpers.points
metric_list: [{metric: points, aggregation: mean, higher_is_better: true}]
"""
HELPERS = """
from PIL import Image


def pictures(doc):
    return [Image.open(file) for file in doc["files"]]


def points(doc, results):
    return {"points": 1000}
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked") / "run"
    train(tiny_experiment(), folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def documents(folder):
    """Questions about one picture, about two with marks, and about none."""
    found = []
    for i in range(QUESTIONS):
        file = folder / f"{i}.png"
        Image.new("RGB", (20 + i, 16), (50 * i, 90, 255 - 40 * i)).save(file)
        files = [str(file)] * (i % 3)
        question = "First <image> then <image>, which?" if len(files) == 2 else f"What is number {i}?"
        found.append({"question": question, "files": files, "answer": "A", "choices": ["red", "green it is"]})
    return found


def tasks(folder, model, **changes):
    """A folder with three tasks; the right answer to every second question is what the model says."""
    folder.mkdir()
    docs = [doc | changes for doc in documents(folder)]
    for doc in docs[::2]:
        doc["answer"] = answers(model, [doc])[0]
    write(folder, "local_answers", docs, GENERATE)
    write(folder, "local_points", docs, UNSCORED)
    write(folder, "local_choices", [doc | {"answer": i % 2} for i, doc in enumerate(docs)], CHOOSE)
    (folder / "helpers.py").write_text(HELPERS)
    return docs


def write(folder, name, docs, more):
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / f"{name}.yaml").write_text(OWN.format(name=name, data=data) + more)


def answers(model, docs, max_new_tokens=6):
    prompts = [Prompt(doc["question"], doc["files"]) for doc in docs]
    return generate(model, [p.example(model.text, model.vision_encoder.image) for p in prompts], max_new_tokens)


def loss(model, doc, answer):
    """-log p of an answer, token by token."""
    tokens = model.text.conversation([Turn(doc["question"], answer)], len(doc["files"]))
    row = pack_row([Example(tokens, stack_images(doc["files"], model.vision_encoder.image))], model.num_image_tokens)
    with torch.no_grad():
        logits = model.language_decoder.logits(model.hidden(row)).log_softmax(-1)
    targets = [(t, target) for t, target in enumerate(row.targets.tolist()) if target >= 0]
    return -sum(logits[t, target].item() for t, target in targets)


def evaluate(run, folder, names, *options):
    return nanovlm(
        "evaluate", run, "--lmms-eval", names, "--include-path", folder, "--device", "cpu", "--json", *options
    )


def test_what_arrives_is_what_we_would_answer_and_the_run_and_its_card_have_it(run, tmp_path):
    model = VisionLanguageModel.from_pretrained(run / "model")
    docs = tasks(tmp_path / "tasks", model)
    before = (run / "summary.json").read_bytes()
    done = evaluate(run, tmp_path / "tasks", "local_answers")
    assert done.status == 0, done.err
    said = answers(model, docs)
    items = read_items(run / "evaluation" / "lmms-local_answers" / f"{STEPS}.jsonl")
    assert [item.prediction for item in items] == said
    assert said[1] != answers(model, [docs[1] | {"files": []}])[0]  # the model looks at pictures
    assert [item.question for item in items] == [doc["question"] for doc in docs]
    assert [item.score for item in items] == [float(a == doc["answer"]) for a, doc in zip(said, docs, strict=True)]
    [summary] = json.loads(done.out)
    right = sum(item.score for item in items)
    assert summary["accuracy"] == right / QUESTIONS >= 0.6
    assert summary["lmms_eval"]["figures"]["exact_match,none"] == pytest.approx(right / QUESTIONS)
    assert (run / "summary.json").read_bytes() == before  # what the run said about itself stands
    result = Result.open(run)
    assert result.items["lmms-local_answers"] == items
    assert list(result.summary["benchmarks"]) == ["shapes", "lmms-local_answers"]
    low, high = wilson_interval([item.score for item in items])
    card = model_card(run / "model", "me/tiny")
    assert "lmms-local_answers (5 questions)" in card
    assert f"{100 * low:.1f}" in card and f"{100 * high:.1f}" in card
    compared = nanovlm("compare", run, "--json")
    assert "lmms-local_answers" in compared.out, compared.err


def test_choices_are_scored_by_their_loss(run, tmp_path):
    model = VisionLanguageModel.from_pretrained(run / "model")
    docs = tasks(tmp_path / "tasks", model)
    assert evaluate(run, tmp_path / "tasks", "local_choices", "--limit", 4).status == 0
    items = read_items(run / "evaluation" / "lmms-local_choices" / f"{STEPS}.jsonl")
    losses = [[loss(model, doc, choice) for choice in doc["choices"]] for doc in docs[:4]]
    best = [pair.index(min(pair)) for pair in losses]
    assert [item.prediction for item in items] == [str(choice) for choice in best]
    assert [item.score for item in items] == [float(choice == i % 2) for i, choice in enumerate(best)]


def test_losses_are_those_of_the_continuation_and_of_nothing_else(run, tmp_path):
    lm = NanoVLM(run, device="cpu")
    docs = documents(tmp_path)
    lm.task_dict = {"task": {"test": docs}}
    asked = [Request((doc["question"], " green", opened, i, "task", "test")) for i, doc in enumerate(docs)]
    expected = [loss(lm.model, doc, "green") for doc in docs]
    assert [result.text[0] for result in lm.loglikelihood(asked)] == pytest.approx(expected, abs=1e-4)
    said = answers(lm.model, docs[:1], 12)[0]
    [result] = lm.loglikelihood([Request((docs[0]["question"], f" {said}x", opened, 0, "task", "test"))])
    assert not result.text[1]


class Request:
    def __init__(self, args):
        self.args, self.task_name = args, args[-2]


def opened(doc):
    return [Image.open(file) for file in doc["files"]]


def test_a_question_that_cannot_be_asked_is_counted_and_wrong(run, tmp_path):
    model = VisionLanguageModel.from_pretrained(run / "model")
    tasks(tmp_path / "tasks", model)
    file = tmp_path / "tasks" / "local_answers.jsonl"
    docs = [json.loads(line) for line in file.read_text().splitlines()]
    docs[1]["question"] = "<image> and <image> and <image>"
    docs[1]["answer"] = ""  # which an empty answer would match
    docs[3]["question"] = "long " * 2000
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    [summary] = json.loads(evaluate(run, tmp_path / "tasks", "local_answers").out)
    assert summary["skipped"] == {"picture marks and pictures differ in number": 1, "too long": 1}
    items = read_items(run / "evaluation" / "lmms-local_answers" / f"{STEPS}.jsonl")
    assert [item.score for item in items][1::2] == [0.0, 0.0]


def test_answers_end_where_the_task_says():
    assert cut("red. Blue\n\nGreen", ["\n\n", "."]) == "red"
    assert cut("red. Blue", "\n") == "red. Blue"
    assert cut("red", None) == cut("red", [""]) == "red"


def test_longer_answers_than_there_is_room_for_end_with_the_room(run, tmp_path):
    lm = NanoVLM(run, device="cpu")
    docs = documents(tmp_path)
    lm.task_dict = {"task": {"test": docs}}
    wishes = {"max_new_tokens": 10**6, "until": []}
    [answer] = lm.generate_until([Request((docs[0]["question"], wishes, opened, 0, "task", "test"))])
    example = Prompt(docs[0]["question"]).example(lm.model.text, lm.model.vision_encoder.image)
    room = lm.model.language_decoder.max_positions - len(example.tokens.ids)
    assert answer == answers(lm.model, docs[:1], room)[0] and not lm.skipped


def test_other_decoding_is_told_and_not_done(run, tmp_path):
    lm = NanoVLM(run, device="cpu")
    docs = documents(tmp_path)
    lm.task_dict = {"task": {"test": docs}}
    wishes = {"max_new_tokens": 6, "temperature": 0.7, "do_sample": True}
    with pytest.warns(UserWarning, match="task: it asks for sampling or beams, and nanovlm_run answers greedily"):
        found = lm.generate_until([Request((docs[0]["question"], wishes, opened, 0, "task", "test"))])
    assert found == answers(lm.model, docs[:1])


def test_what_is_no_picture_is_refused(run):
    lm = NanoVLM(run, device="cpu")
    lm.task_dict = {"films": {"test": [{}]}}
    with pytest.raises(ConfigError, match=r"films: it shows what is no picture \(str\); nanovlm_run sees pictures"):
        lm.generate_until([Request(("What?", {}, lambda doc: ["film.mp4"], 0, "films", "test"))])


def test_of_a_task_without_scores_from_0_to_1_only_its_figures_are_told_and_others_are_kept(run, tmp_path):
    tasks(tmp_path / "tasks", VisionLanguageModel.from_pretrained(run / "model"))
    done = evaluate(run, tmp_path / "tasks", "local_points,local_answers")
    assert done.status == 2
    assert "local_points: none of its metrics (points) scores each question from 0 to 1" in done.err
    assert "lmms-eval says points,none = 1000" in done.err
    assert [summary["benchmark"] for summary in json.loads(done.out)] == ["lmms-local_answers"]
    assert not (run / "evaluation" / "lmms-local_points").exists()


def test_an_unknown_task_is_named_with_the_one_that_was_meant(run, tmp_path):
    tasks(tmp_path / "tasks", VisionLanguageModel.from_pretrained(run / "model"))
    done = evaluate(run, tmp_path / "tasks", "local_anwsers,local_choices")
    assert done.status == 2
    assert "--lmms-eval local_anwsers: lmms-eval has no such task. Did you mean 'local_answers'?" in done.err


def test_a_model_that_is_no_runs_last_is_asked_and_kept_nowhere(run, tmp_path):
    tasks(tmp_path / "tasks", VisionLanguageModel.from_pretrained(run / "model"))
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    done = nanovlm("evaluate", alone, "--lmms-eval", "local_answers", "--include-path", tmp_path / "tasks")
    assert "lmms-local_answers: accuracy" in done.out and "kept nowhere" in done.out, done.err


def test_what_lmms_eval_may_ask_and_we_do_not_do_is_refused(run, monkeypatch):
    lm = NanoVLM(run, device="cpu")
    with pytest.raises(ConfigError, match="talks: it asks in several rounds, and nanovlm_run answers one question"):
        lm.generate_until_multi_round([Request(("What?", {}, None, 0, "talks", "test"))])
    with pytest.raises(ConfigError, match="leave out acc_mutual_info"):
        lm.loglikelihood([Request(("", "red"))])
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        NanoVLM(run, device="gpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start it without accelerate and torchrun"):
        NanoVLM(run, device="cpu")


@pytest.mark.slow  # lmms-eval tries five times
def test_a_dataset_that_cannot_be_had_is_one_message(run, tmp_path):
    tasks(tmp_path / "tasks", VisionLanguageModel.from_pretrained(run / "model"))
    (tmp_path / "tasks" / "local_answers.jsonl").unlink()
    done = evaluate(run, tmp_path / "tasks", "local_answers")
    assert done.status == 2
    assert "lmms-eval cannot ask local_answers: FileNotFoundError" in done.err


@pytest.mark.slow
def test_lmms_evals_own_command_finds_the_model_by_its_entry_point(run, tmp_path):
    docs = tasks(tmp_path / "tasks", VisionLanguageModel.from_pretrained(run / "model"))
    words = ["-m", "lmms_eval", "--model", NAME, "--model_args", f"pretrained={run},device=cpu", "--tasks"]
    words += ["local_answers", "--include_path", tmp_path / "tasks", "--output_path", tmp_path / "out", "--log_samples"]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    [file] = (tmp_path / "out").rglob("*_samples_local_answers.jsonl")
    logged = [json.loads(line) for line in file.read_text().splitlines()]
    said = answers(VisionLanguageModel.from_pretrained(run / "model"), docs)
    assert [sample["filtered_resps"] for sample in sorted(logged, key=lambda s: s["doc_id"])] == said
