import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from nanovlm import ConfigError
from nanovlm.blueprint import Part
from nanovlm.data.huggingface import config_names, load_rows
from nanovlm.hub import CONFIG, WEIGHTS, HubError, fetch, local_folder

ASKS = {  # everything that may go to the hub
    "weights": lambda source: fetch(source, WEIGHTS),
    "rows": lambda source: load_rows(source, "some", "train", {"texts[].user": "text"}),
    "subsets": config_names,
}
every_ask = pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)


@pytest.fixture
def online(monkeypatch):
    """As if the hub could be asked; whatever then wants to connect fails at once (see conftest.py)."""
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(online, monkeypatch):
    """A hub on this machine that answers every request with the status and the error code it is given."""
    answer = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["status"])
            self.send_header("X-Error-Code", answer["code"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield answer
        server.shutdown()


def refusal(ask, source: str) -> str:
    with pytest.raises(HubError) as caught:
        ask(source)
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    assert fetch(str(folder), WEIGHTS) == folder
    monkeypatch.chdir(tmp_path)
    assert fetch("owner/name", WEIGHTS).samefile(folder)  # a folder here comes before the hub
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/owner/name", WEIGHTS) == folder


@pytest.mark.parametrize("source", ["", "~nobody-of-this-name/x", "x" * 5000, "a\0b", "nothing/here", "."], ids=repr)
def test_what_is_no_folder_is_never_a_crash(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (local_folder(source) is not None) == (source == ".")


@every_ask
@pytest.mark.parametrize("source", ["./gone", "/no/such/folder", "~/gone/model", "a/b/c", "bad name!/x", "", "x" * 500])
def test_a_path_that_is_missing_is_not_looked_for_on_the_hub(ask, source):
    assert refusal(ask, source).endswith(f": {source!r} is no folder here, and it is no hub id either (owner/name)")


@every_ask
def test_a_file_is_told_to_be_one(ask, tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    assert refusal(ask, str(file)).endswith("and it is a file: name the folder that it is in")


@every_ask
def test_offline_the_message_says_that_nobody_was_asked(ask):
    message = refusal(ask, "owner/name")
    assert message.endswith(
        ": 'owner/name' is no folder here, and it is not in the cache of the Hugging Face hub, "
        "and HF_HUB_OFFLINE is set"
    )


@every_ask
def test_a_hub_that_cannot_be_reached_is_given_up_at_once(ask, online):
    start = time.monotonic()
    message = refusal(ask, "owner/name")
    assert time.monotonic() - start < 5  # the datasets library alone tries for 23 seconds
    assert "'owner/name' is no folder here, and the Hugging Face hub did not give it (ConnectError: " in message
    assert len(message) < 400


def test_asking_for_a_dataset_in_vain_leaves_the_library_as_it_was(online):
    import datasets

    refusal(config_names, "owner/name")
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "the Hugging Face hub has no public repository of this name (is it private?"),
        (401, "RepoNotFound", "the Hugging Face hub has no public repository of this name (is it private?"),
        (
            403,
            "GatedRepo",
            "on the Hugging Face hub its terms must be accepted first (then log in with `hf auth login`)",
        ),
        (500, "", "the Hugging Face hub did not give it (HfHubHTTPError: Server error '500 Internal Server Error'"),
    ],
)
def test_what_the_hub_answers_is_told_in_plain_words(hub, status, code, message):
    hub.update(status=status, code=code)
    assert message in refusal(ASKS["weights"], "owner/name")


def test_the_message_says_where_and_which_override_takes_a_folder(registries):
    part = Part.of(registries.vision_encoders, "vision_encoder", "siglip", {"weights": "owner/name"})
    with pytest.raises(ConfigError) as caught:
        part.resolved()
    first, second = str(caught.value).splitlines()
    assert first.startswith("vision_encoder.weights: 'owner/name' is no folder here, and it is not in the cache")
    assert second == "  Without network, point it at a folder: vision_encoder.weights=FOLDER"


def test_the_option_that_named_the_source_is_named():
    with pytest.raises(HubError, match=r"^tokenizer: 'a/b/c' is no folder here"):
        fetch("a/b/c", CONFIG, "tokenizer")
