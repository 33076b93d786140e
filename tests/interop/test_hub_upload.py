"""Uploads to a hub on this machine, and what is said of one that does not take them."""

import shutil

import pytest
import torch
from command import nanovlm
from huggingface_hub import constants
from local_hub import TOKEN, LocalHub
from tiny import tiny_experiment, tiny_model

from nanovlm import CheckpointError, ConfigError, VisionLanguageModel, train
from nanovlm.interop import hub_upload
from nanovlm.interop.hub_upload import push

MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uploaded") / "run"
    train(tiny_experiment(), folder)
    return folder


@pytest.fixture
def folder(run, tmp_path):
    """A copy of the model without its run."""
    return shutil.copytree(run / "model", tmp_path / "alone")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks the older protocol
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with LocalHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub


def refusal(*arguments, **options) -> str:
    with pytest.raises(ConfigError) as refused:
        push(*arguments, **options)
    assert TOKEN not in str(refused.value)
    return str(refused.value)


def test_the_hub_gets_exactly_the_files_that_are_listed_and_a_new_repository_is_private(hub, folder):
    upload = push(folder, "me/tiny")
    repo = hub.repos["me/tiny"]
    assert repo["private"] is True
    assert repo["files"].keys() == upload.files.keys() == MODEL | {"README.md"}
    assert {name: len(content) for name, content in repo["files"].items()} == upload.files
    for name in MODEL:
        assert repo["files"][name] == (folder / name).read_bytes()
    assert repo["files"]["README.md"].decode() == upload.card
    assert upload.lines[0] == f"uploaded to {hub.url}/me/tiny (private)"
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_what_was_uploaded_is_the_same_model(hub, folder, tmp_path):
    push(folder, "me/tiny")
    back = tmp_path / "back"
    back.mkdir()
    for name, content in hub.repos["me/tiny"]["files"].items():
        (back / name).write_bytes(content)
    first, second = (VisionLanguageModel.from_pretrained(place).state_dict() for place in (folder, back))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_repository_is_public_only_if_told(hub, folder):
    upload = push(folder, "me/open", public=True)
    assert hub.repos["me/open"]["private"] is False
    assert upload.lines[0].endswith("/me/open (public)")


def test_a_model_goes_nowhere_more_public_than_was_asked(hub, folder):
    hub.put("me/open", private=False)
    assert refusal(folder, "me/open") == (
        "--to hub me/open: it exists and is public: say --public if that is meant, or name another one"
    )
    hub.put("me/closed", private=True)
    assert "--public: me/closed exists and is private" in refusal(folder, "me/closed", public=True)
    assert not any(request.startswith(("POST", "PUT")) for request in hub.asked)


def test_another_models_files_are_taken_away_and_all_else_in_the_repository_stays(hub, folder):
    hub.put("me/tiny", files={})
    hub.repos["me/tiny"]["files"] = {
        "model-00001-of-00002.safetensors": b"1",
        "model.safetensors.index.json": b"{}",
        "template.jinja": b"old",
        "config.json": b"old",
        "picture.png": b"stays",
        ".gitattributes": b"stays",
    }
    upload = push(folder, "me/tiny")
    removed = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "template.jinja"}
    assert set(upload.removed) == removed
    assert {f"removed there: {name}, of another model" for name in removed} <= set(upload.lines)
    assert hub.repos["me/tiny"]["files"].keys() == MODEL | {"README.md", "picture.png", ".gitattributes"}
    assert hub.repos["me/tiny"]["files"]["config.json"] == (folder / "config.json").read_bytes()


def test_stray_files_links_and_folders_stay_here_and_are_said_to(hub, folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "notes.txt").write_text("mine")
    (folder / ".env").write_text("TOKEN=1")
    (folder / "optimizer.safetensors").write_text("mine")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "checkpoints").mkdir()
    (folder / "tokenizer-old").mkdir()
    (folder / "README.md").write_text("by hand")
    upload = push(folder, "me/tiny")
    assert upload.left_out == {
        ".env": "no part of the model",
        "README.md": "written anew",
        "checkpoints": "no part of the model",
        "link": "a symbolic link",
        "notes.txt": "no part of the model",
        "optimizer.safetensors": "no part of the model",
        "tokenizer-old": "no file",
    }
    assert "left out: link: a symbolic link" in upload.lines
    assert hub.repos["me/tiny"]["files"].keys() == MODEL | {"README.md"}
    assert b"by hand" not in hub.repos["me/tiny"]["files"]["README.md"]


@pytest.mark.parametrize("name", sorted(MODEL))
def test_a_link_in_the_place_of_a_model_file_is_refused(hub, folder, tmp_path, name):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(folder, "me/tiny").startswith(f"{folder / name} is a symbolic link, which is not followed: make a")
    assert hub.asked == []


def test_a_folder_without_a_model_is_refused_before_the_hub_is_asked(hub, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config.json: is it a model folder\?"):
        push(tmp_path, "me/tiny")
    assert hub.asked == []


def test_a_folder_without_weights_is_refused(hub, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        push(folder, "me/tiny")
    assert hub.asked == []


@pytest.mark.parametrize("repo", ["tiny", "", "a/b/c", "me/ti ny", "/tiny", "me/", "../me", "me/" + "x" * 200])
def test_what_can_be_no_repository_is_told_so(hub, folder, repo):
    assert refusal(folder, repo).startswith(f"--to hub {repo}: a repository is named owner/name")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the Hugging Face hub does not know who asks: log in with `hf auth login`, by a token that may write"),
        (
            403,
            "the Hugging Face hub does not let this token write to me: use one with write access, of me itself or of "
            "one of its members",
        ),
        (
            404,
            "the Hugging Face hub has no user and no organization me, or no repository of this name any more",
        ),
        (500, "the Hugging Face hub did not take it (HfHubHTTPError: "),
    ],
)
@pytest.mark.parametrize("place", ["/api/repos/create", "/commit/"])
def test_a_hub_that_refuses_is_told_in_plain_words(hub, folder, place, status, said):
    hub.answers[place] = status
    message = refusal(folder, "me/tiny")
    assert message.startswith(f"--to hub me/tiny: {said}")
    assert message.endswith("the same command goes on.") == (place == "/commit/")
    assert hub.repos.get("me/tiny", {"files": {}})["files"] == {}


def test_a_hub_that_refuses_to_show_anything_is_told_in_plain_words(hub, folder):
    hub.answers["/api/"] = 401
    assert refusal(folder, "me/tiny").startswith("--to hub me/tiny: the Hugging Face hub does not know who asks")


def test_the_name_of_somebody_else_is_refused_by_the_hub(hub, folder):
    assert "does not let this token write to you: use one" in refusal(folder, "you/tiny")
    assert hub.repos == {}


def test_weights_that_do_not_get_through_leave_an_empty_repository_and_the_same_command_goes_on(hub, folder):
    hub.answers["/upload/"] = 403
    message = refusal(folder, "me/tiny")
    assert message.endswith("\n  The repository was made, and holds no model yet; the same command goes on.")
    assert hub.repos["me/tiny"]["files"] == {}
    hub.answers.clear()
    push(folder, "me/tiny")
    assert hub.repos["me/tiny"]["files"].keys() == MODEL | {"README.md"}


def test_what_the_hub_ignores_is_not_said_to_be_there(hub, folder):
    hub.ignored.add("model.safetensors")
    assert refusal(folder, "me/tiny").startswith(
        "--to hub me/tiny: model.safetensors did not arrive: does the repository's .gitignore name what a model needs?"
    )


@pytest.mark.parametrize("moment", ["FIRST_ANSWER", "ANSWER"])
def test_a_hub_that_says_nothing_is_given_up(hub, folder, monkeypatch, moment):
    from huggingface_hub.utils import get_session

    monkeypatch.setattr(hub_upload, moment, 0.1)
    if moment == "ANSWER":
        hub.put("me/tiny")
        monkeypatch.setattr(hub_upload, "find_repo", lambda api, repo: None)
    hub.delay = 0.5
    before = get_session().timeout
    said = "--to hub me/tiny: the Hugging Face hub did not answer in time: try again later"
    assert refusal(folder, "me/tiny") == said
    assert get_session().timeout == before


def test_a_hub_that_is_not_there_is_told_so(hub, folder):
    hub.__exit__()
    message = refusal(folder, "me/tiny")
    assert message.startswith("--to hub me/tiny: the Hugging Face hub cannot be reached (ConnectError: ")
    assert message.endswith("): is there a network?")


def test_offline_the_message_says_that_nobody_was_asked(folder):
    assert refusal(folder, "me/tiny") == (
        "--to hub me/tiny: HF_HUB_OFFLINE is set, so the Hugging Face hub was not asked: unset it to upload"
    )


def test_a_dry_run_writes_the_card_lists_the_files_and_asks_nobody(hub, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.chdir(tmp_path)
    upload = push(folder, "me/tiny", dry_run=True)
    assert hub.asked == []
    assert (tmp_path / "tiny-model-card.md").read_text() == upload.card
    assert {file.name for file in folder.iterdir()} == MODEL
    first, *listed = upload.lines
    assert first == f"nothing uploaded; to {hub.url}/me/tiny (private) would go"
    assert [line.split()[0] for line in listed[:5]] == ["README.md", *sorted(MODEL)]
    assert f"{(folder / 'model.safetensors').stat().st_size:,} bytes" in listed[2]
    assert listed[-1] == "the model card: tiny-model-card.md"
    assert upload.to_json()["uploaded"] is False


def test_a_dry_run_promises_what_the_upload_keeps(hub, run):
    promised = push(run / "model", "me/tiny", dry_run=True)
    assert promised.card_file == run / "model-card.md"
    assert push(run / "model", "me/tiny").files == promised.files


def test_a_card_that_cannot_be_written_is_said_to(folder, tmp_path, monkeypatch):
    (tmp_path / "tiny-model-card.md").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refusal(folder, "me/tiny", dry_run=True) == (
        "--dry-run: tiny-model-card.md, for the model card, cannot be written: Is a directory"
    )


def test_an_export_of_a_runs_model_has_the_card_of_its_run(hub, run, folder):
    card = push(folder, "me/tiny", origin=run / "model", changes=["Its weights were cast to bf16."]).card
    assert "Accuracy on shapes, 8 questions" in card
    assert "Its weights were cast to bf16." in card
    assert "Accuracy on shapes" not in push(folder, "me/tiny").card


def test_what_the_config_tells_of_this_machine_is_said_before_others_read_it(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "tokenizers" / "of mine"
    shutil.copytree(folder, place)
    model = tiny_model(f"language_decoder.tokenizer={place}")
    model.save_pretrained(tmp_path / "told")
    upload = push(tmp_path / "told", "me/tiny", dry_run=True)
    assert f"note that config.json names a place on a machine: language_decoder.tokenizer={place}" in upload.lines
    assert str(tmp_path) not in upload.card


def test_the_command_uploads_a_run_as_it_is(hub, run):
    done = nanovlm("export", run, "me/tiny", "--to", "hub")
    assert (done.status, done.out.splitlines()[0]) == (0, f"uploaded to {hub.url}/me/tiny (private)")
    assert hub.repos["me/tiny"]["files"]["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert TOKEN not in done.out + done.err


def test_the_command_uploads_in_another_type_with_the_card_of_the_run(hub, run):
    assert nanovlm("export", run, "me/half", "--to", "hub", "--dtype", "bf16", "--public").status == 0
    repo = hub.repos["me/half"]
    assert repo["private"] is False
    assert repo["files"].keys() == MODEL | {"README.md"}
    card = repo["files"]["README.md"].decode()
    assert "The weights are stored in bf16" in card
    assert "| BF16 |" in card
    assert "Accuracy on shapes, 8 questions" in card


def test_the_commands_dry_run_needs_no_hub(run):
    done = nanovlm("export", run, "me/tiny", "--to", "hub", "--dry-run")
    assert (done.status, done.out.splitlines()[-1]) == (0, f"the model card: {run / 'model-card.md'}")


def test_the_command_says_why_the_hub_refused_and_no_more(hub, run):
    hub.answers["/api/repos/create"] = 403
    done = nanovlm("export", run, "me/tiny", "--to", "hub")
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith("nanovlm: --to hub me/tiny: the Hugging Face hub does not let this")
    assert TOKEN not in done.out + done.err
