"""Whatever the user gets wrong: exit status 2, no traceback, and a message with where, what, and the likely fix."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
from command import Done, nanovlm
from tiny import QUICKSTART, SIZES
from wrong_files import fill

TRAIN = ["train", QUICKSTART, *SIZES, "--run-dir", "{here}/run"]
PLAN = ["plan", QUICKSTART]
ASK = ["generate", "--model", "{here}/model", "--prompt", "What?"]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with everything that can be wrong."""
    return fill(tmp_path_factory.mktemp("here"))


def without(prefix: str) -> list[object]:
    """Training without the sizes of what is replaced."""
    return [word for word in TRAIN if not str(word).startswith(prefix)]


def loading(folder: str) -> list[str]:
    return ["generate", "--model", f"{{here}}/{folder}", "--prompt", "What?"]


# what is wrong: the command line, and pieces of what is said about it
WRONG = {
    "unknown component": (
        [*PLAN, "projector=pixel_shufle"],
        ["projector: unknown projector 'pixel_shufle'. Did you mean 'pixel_shuffle'?", "Known here: "],
    ),
    "unknown dataset": (
        [*PLAN, "data.train.0={name: shape}"],
        ["data.train.0: unknown dataset 'shape'. Did you mean 'shapes'?", "Known here: "],
    ),
    "unknown tracker": ([*PLAN, "trackers=[consol]"], ["trackers.0: unknown tracker 'consol'", "'console'"]),
    "unknown option": (
        [*PLAN, "projector.facter=4"],
        ["projector: unknown option 'facter'. Did you mean 'factor'?", "Known here: factor"],
    ),
    "unknown key": (
        [*PLAN, "training.sample_per_step=4"],
        ["training: unknown option 'sample_per_step'. Did you mean 'samples_per_step'?", "Known here: ", "warmup"],
    ),
    "unknown key on top": ([*PLAN, "projectr=4"], ["unknown option 'projectr'. Did you mean 'projector'?"]),
    "several at once": (
        [*PLAN, "projector.facter=4", "vision_encoder.image_sise=4"],
        ["'facter'. Did you mean 'factor'?", "'image_sise'. Did you mean 'image_size'?"],
    ),
    "wrong type": (
        [*PLAN, "training.samples_per_step=many"],
        ["training.samples_per_step='many'", "input should be a valid integer"],
    ),
    "true is no number": ([*PLAN, "training.samples_per_step=true"], ["training.samples_per_step=True", "integer"]),
    "wrong type of an option": ([*PLAN, "projector.factor=two"], ["projector.factor='two'", "integer", "patches"]),
    "out of range": (
        [*PLAN, "training.warmup=2"],
        ["training.warmup=2", "less than or equal to 1", "warmup: The share"],
    ),
    "out of range in a list": (
        [*PLAN, "data.train.0.weight=-1"],
        ["data.train.0.weight=-1", "greater than 0", "weight: How often"],
    ),
    "the end of a range": ([*PLAN, "training.betas=[0.9, 1]"], ["training.betas.1=1", "less than 1"]),
    "a template that is no file": (
        [*PLAN, "language_decoder.template=nope.jinja"],
        ["language_decoder: template 'nope.jinja': expected question_answer, tokenizer, or the path of a Jinja file"],
    ),
    "another benchmark by an override": (
        ["evaluate", "{here}/model", "--benchmark", "shapes", "name=mmstar"],
        ["name=mmstar: another benchmark is chosen by --benchmark mmstar"],
    ),
    "an override as for a run": (
        ["evaluate", "{here}/model", "--benchmark", "shapes", "benchmarks.0.limit=5"],
        ["benchmarks.0.limit: there is one benchmark here, so write limit=5"],
    ),
    "output within a file": (
        ["evaluate", "{here}/model", "--benchmark", "shapes", "--output", "{here}/red.png/x.jsonl"],
        ["--output", "red.png/x.jsonl: no folder can be made there"],
    ),
    "no choice": ([*PLAN, "device=tpu"], ["device='tpu'", "'auto', 'cuda', 'mps' or 'cpu'"]),
    "no such entry": (
        [*PLAN, "data.train.3.weight=1"],
        ["override data.train.3.weight: '3' is no entry of this list", "entries 0 to 0"],
    ),
    "no value": ([*PLAN, "projector.factor"], ["override 'projector.factor'", "expected dotted.key=value"]),
    "YAML syntax": (["plan", "{here}/broken.yaml"], ["broken.yaml, line ", "not valid YAML"]),
    "YAML syntax in an override": ([*PLAN, "projector={name: ["], ["override 'projector={name: ['", "not valid YAML"]),
    "a key twice": (["plan", "{here}/twice.yaml"], ["twice.yaml, line 2", "'seed' stands twice"]),
    "no mapping": (["plan", "{here}/list.yaml"], ["list.yaml", "a mapping of keys to values, not list"]),
    "missing file": (["plan", "{here}/nowhere.yaml"], ["nowhere.yaml: there is no such file"]),
    "a folder": (["plan", "{here}/empty"], ["empty: cannot be read", "Is a directory"]),
    "extends what is missing": (["plan", "{here}/orphan.yaml"], ["nowhere.yaml: there is no such file"]),
    "extends in a circle": (
        ["plan", "{here}/circle.yaml"],
        ["extends goes in a circle: circle.yaml -> back.yaml -> circle.yaml"],
    ),
    "two budgets": (["plan", "{here}/two_budgets.yaml"], ["exactly one budget", "steps and epochs are set"]),
    "two budgets in overrides": (
        [*PLAN, "training.steps=3", "training.samples=9"],
        ["exactly one budget", "samples and steps are set"],
    ),
    "no budget": (["plan", "{here}/no_budget.yaml"], ["exactly one budget", "none is set"]),
    "a plugin that does not import": (
        [*PLAN, "--plugin", "{here}/not_import.py"],
        ["--plugin", "not_import.py does not load: ModuleNotFoundError: No module named 'no_such_module'"],
    ),
    "a plugin that is no Python": (
        [*PLAN, "--plugin", "{here}/syntax.py"],
        ["syntax.py does not load: SyntaxError"],
    ),
    "a plugin without a hook": (
        ["list", "--plugin", "{here}/nothing.py"],
        ["nothing.py does not load: registers nothing", "register_projectors"],
    ),
    "a misspelt hook": (
        ["list", "--plugin", "{here}/misspelt.py"],
        ["misspelt.py does not load", "unknown hook 'register_projector'", "register_projectors"],
    ),
    "a component without Config": (
        ["list", "--plugin", "{here}/no_config.py"],
        ["projector 'bare': Bare needs a nested `class Config(ComponentConfig)`"],
    ),
    "a missing plugin": (["list", "--plugin", "{here}/nowhere.py"], ["nowhere.py", "there is no such file"]),
    "two plugins with one name": (
        [*PLAN, "--plugin", "{here}/rival.py"],
        ["projector 'pixel_shuffle' is claimed by 2 plugins", "'nanovlm:pixel_shuffle'", "'rival:pixel_shuffle'"],
    ),
    "a grid that the projector cannot take": (
        [*PLAN, "projector.factor=3", *SIZES],
        ["projector: factor=3 must divide the 4 x 4 patch grid; 1, 2, 4 do"],
    ),
    "a row too short": ([*PLAN, *SIZES, "training.tokens_per_row=9"], ["training.tokens_per_row=9", "raise it"]),
    "a hub name without network": (
        [*PLAN, "vision_encoder.weights=some/encoder"],
        [
            "vision_encoder.weights: 'some/encoder' is no folder here",
            "Hugging Face hub",
            "vision_encoder.weights=FOLDER",
        ],
    ),
    "a folder that is not there": (
        [*PLAN, "vision_encoder.weights=./nowhere"],
        ["vision_encoder.weights: './nowhere' is no folder here", "no hub id either"],
    ),
    "a dataset without network": (
        [*without("data.train.0."), "data.train=[{name: the_cauldron, source: some/data}]"],
        ["data.train.0.source: 'some/data' is no folder here", "data.train.0.source=FOLDER"],
    ),
    "an empty dataset": (
        [*TRAIN, "data.train.0.train_size=0"],
        ["data.train.0: shapes has no sample in its train split"],
    ),
    "an empty benchmark": (
        [*TRAIN, "benchmarks.0.test_size=0"],
        ["benchmarks.0: shapes has no sample in its test split"],
    ),
    "nothing to train on": ([*TRAIN, "data.validation.share=1"], ["data.train.0: all of its 64 samples are held out"]),
    "no benchmark": (
        [*without("benchmarks.0."), "benchmarks=[{name: the_cauldron, source: tiny}]"],
        ["benchmarks.0: the_cauldron "],
    ),
    "a run folder in use": (
        [*TRAIN[:-1], "{here}/full"],
        ["--run-dir {here}/full: the folder is not empty", "name a new one, or remove it"],
    ),
    "a run folder that is a file": (
        [*TRAIN[:-1], "{here}/red.png"],
        ["--run-dir {here}/red.png: no folder can be made"],
    ),
    "missing tensors": (loading("missing"), ["missing (1):", "projector.linear.weight"]),
    "unexpected tensors": (loading("unexpected"), ["unexpected (1):", "projector.linear.bias"]),
    "misshapen tensors": (
        loading("misshapen"),
        ["misshapen (1):", "projector.linear.weight (24, 8), the model has (24, 64)"],
    ),
    "a model without weights": (loading("no_weights"), ["no_weights has no model.safetensors"]),
    "a model of broken JSON": (loading("no_json"), ["no_json/config.json is not JSON"]),
    "somebody else's model": (loading("stranger"), ["stranger/config.json", "it was not written by nanovlm"]),
    "a model of unknown parts": (loading("unknown_projector"), ["Did you mean 'pixel_shuffle'?"]),
    "no model": (["evaluate", "{here}/empty", "--benchmark", "shapes"], ["empty has no config.json", "model folder?"]),
    "no model at all": (["evaluate", "{here}/nowhere"], ["model: '{here}/nowhere' is no folder here"]),
    "no model of the hub": (["evaluate", "some/model"], ["model: 'some/model' is no folder here", "Hugging Face hub"]),
    "no benchmark named": (["evaluate", "{here}/model"], ["--benchmark NAME is missing", "belongs to no run"]),
    "an unknown benchmark": (
        ["evaluate", "{here}/model", "--benchmark", "shape"],
        ["benchmark: unknown dataset 'shape'. Did you mean 'shapes'?"],
    ),
    "an unknown option of a benchmark": (
        ["evaluate", "{here}/model", "--benchmark", "shapes", "tst_size=3"],
        ["benchmark: unknown option 'tst_size'. Did you mean 'test_size'?"],
    ),
    "a wrong limit of a benchmark": (
        ["evaluate", "{here}/model", "--benchmark", "shapes", "limit=few"],
        ["benchmark.limit='few'", "integer"],
    ),
    "a negative limit": (
        ["evaluate", "{here}/model", "--benchmark", "shapes", "--limit", "-1"],
        ["Invalid value for '--limit'"],
    ),
    "a folder to write items to": (
        ["evaluate", "{here}/model", "--benchmark", "shapes", "--output", "{here}/empty"],
        ["--output", "is a directory"],
    ),
    "a picture that is not there": ([*ASK, "--image", "{here}/no.png"], ["--image {here}/no.png: picture not found"]),
    "a file that is no picture": (
        [*ASK, "--image", "{here}/red.png", "--image", "{here}/no_picture.png"],
        ["--image {here}/no_picture.png: undecodable picture"],
    ),
    "more marks than pictures": (
        [*ASK[:-1], "<image> or <image>?", "--image", "{here}/red.png"],
        ["--prompt marks 2 places with <image>, --image names 1 pictures", "mark one place for each"],
    ),
    "a mark without a picture": ([*ASK[:-1], "<image>?"], ["--prompt marks 1 places with <image>, --image names 0"]),
    "too long an answer": ([*ASK, "--max-new-tokens", "1000"], ["the decoder at most 256", "lower max_new_tokens"]),
    "no answer": ([*ASK, "--max-new-tokens", "0"], ["Invalid value for '--max-new-tokens'"]),
    "an unknown device": ([*ASK, "--device", "tpu"], ["--device", "'tpu' is not one of"]),
    "an unknown name in the list": (["list", "shape"], ["unknown component 'shape'. Did you mean 'shapes'?"]),
    "an unknown command": (["trian"], ["No such command 'trian'"]),
    "an unknown switch": ([*PLAN, "--jsn"], ["No such option", "--jsn"]),
    "an experiment left out": (["train"], ["EXPERIMENT is missing: name a YAML file, or a run to go on with by"]),
    "an argument left out": (["plan"], ["Missing argument"]),
    "an option left out": (["generate", "--model", "{here}/model"], ["Missing option '--prompt'"]),
}


@pytest.mark.parametrize(("arguments", "pieces"), WRONG.values(), ids=WRONG)
def test_it_is_refused_with_a_clear_message(here, arguments, pieces):
    done = nanovlm(*(str(word).replace("{here}", str(here)) for word in arguments))
    assert_refused(done, [piece.replace("{here}", str(here)) for piece in pieces])
    assert not (here / "run").exists()


def assert_refused(done: Done, pieces: list[str]) -> None:
    assert done.status == 2
    assert "Traceback" not in done.err
    assert [piece for piece in pieces if piece not in done.err] == []


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("command", [[*TRAIN, "device={}"], [*ASK, "--device", "{}"]], ids=["train", "generate"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(here, command, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    done = nanovlm(*(str(word).replace("{here}", str(here)).replace("{}", device) for word in command))
    assert_refused(done, [f"device='{device}': torch", "use auto, or one of cpu"])


def test_nothing_in_a_full_folder_is_touched(here):
    assert [file.name for file in (here / "full").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("number", ["1e-4", "1E-4", ".0001", "1.0e-4"])
def test_a_number_is_a_number_however_it_is_written(tmp_path, number):
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {QUICKSTART}\ntraining: {{learning_rate: {{projector: {number}}}}}\n")
    assert nanovlm("plan", file).status == 0
    assert nanovlm(*PLAN, f"training.learning_rate.projector={number}").status == 0


@pytest.mark.parametrize("choice", ["nanovlm:pixel_shuffle", "rival:pixel_shuffle"])
def test_what_the_message_about_two_plugins_suggests_works(here, choice):
    assert nanovlm(*PLAN, "--plugin", here / "rival.py", f"projector.name={choice}").status == 0


def test_a_failed_plugin_is_named_where_its_component_is_missed(here, monkeypatch):
    """Nobody gave it with --plugin, so it stops no one else: but it may hold what was meant."""
    monkeypatch.syspath_prepend(here)
    broken = importlib.metadata.EntryPoint("broken", "not_import", "nanovlm")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    assert nanovlm(*PLAN).status == 0
    assert_refused(
        nanovlm(*PLAN, "projector=shuffler"),
        ["unknown projector 'shuffler'", "Not loaded: ", "not_import.py: ModuleNotFoundError"],
    )
