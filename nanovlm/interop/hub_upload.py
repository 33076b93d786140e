"""To the hub: a model folder's files and its model card, and nothing else, in one commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from nanovlm.errors import ConfigError
from nanovlm.files import write_whole
from nanovlm.hub import CONFIG, TOKENIZER, why_not_taken
from nanovlm.interop.model_card import CARD, model_card
from nanovlm.interop.origin import Origin
from nanovlm.model_folder import read_config
from nanovlm.weights import read_json

FILES = (*CONFIG, "model*.safetensors", "model*.safetensors.index.json", *TOKENIZER)  # what a model is loaded from
DRY_CARD = "model-card.md"  # where a dry run writes it, in the run's folder
FIRST_ANSWER = 30.0  # seconds until a hub that says nothing is given up
ANSWER = 300.0  # the same while it works on what it was sent


@dataclass(frozen=True)
class Upload:
    """What goes to a repository, or has gone.

    files: their sizes in bytes by name
    removed: files of another model that the repository has, and that would be loaded with this one
    left_out: what else the folder holds, and why it stays here
    notes: what the user should know before others read it
    done: whether it has gone there; card_file: where a dry run wrote the card
    """

    url: str
    public: bool
    card: str
    files: dict[str, int]
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    done: bool = False
    card_file: Path | None = None

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        who = "public" if self.public else "private"
        width = max(map(len, self.files))
        first = f"uploaded to {self.url} ({who})" if self.done else f"nothing uploaded; to {self.url} ({who}) would go"
        return [
            first,
            *(f"  {name:{width}} {size:>15,} bytes" for name, size in self.files.items()),
            *(f"removed there: {name}, of another model" for name in self.removed),
            *(f"left out: {name}: {why}" for name, why in self.left_out.items()),
            *self.notes,
            *([f"the model card: {self.card_file}"] if self.card_file else []),
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "public": self.public,
            "uploaded": self.done,
            "files": self.files,
            "removed": list(self.removed),
            "left_out": self.left_out,
            "notes": list(self.notes),
            "card": str(self.card_file) if self.card_file else None,
        }


def push(
    folder: Path,
    repo: str,
    origin: Path | None = None,
    public: bool = False,
    dry_run: bool = False,
    changes: Sequence[str] = (),
) -> Upload:
    """Upload a model folder with a model card written from its run; the repository is made if there is none.

    repo: ``owner/name``; a new one is private unless ``public``
    origin: the model folder that ``folder`` was made from, whose run the card speaks of; by default itself
    dry_run: only write the card (``model-card.md`` in the run's folder, or ``<name>-model-card.md`` in the working
        directory if there is no run) and list what would go; asks nobody anything
    changes: what was done to the model on the way (sentences), for the card

    Raises ConfigError for what cannot be uploaded and for a hub that does not take it, CheckpointError where the folder
    is no model's. One commit: what fails leaves nothing half uploaded.
    """
    from huggingface_hub import constants

    check_repo(repo)
    chosen, left_out = model_files(folder)
    source = Origin.of(origin or folder)
    card = model_card(folder, repo, source, changes)
    sizes = {CARD: len(card.encode()), **{name: path.stat().st_size for name, path in chosen.items()}}
    upload = Upload(f"{constants.ENDPOINT}/{repo}", public, card, sizes, left_out, tuple(places_named(folder)))
    if dry_run:
        file = source.run.folder / DRY_CARD if source.run else Path(f"{repo.rpartition('/')[2]}-{DRY_CARD}")
        try:
            write_whole(file, card)
        except OSError as error:
            raise ConfigError(f"--dry-run: {file}, for the model card, cannot be written: {error.strerror}") from None
        return replace(upload, card_file=file)
    return send(upload, repo, chosen)


def check_repo(repo: str) -> None:
    """ConfigError if this can be no repository's name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, only not marked so

    try:
        validate_repo_id(repo)
        valid = "/" in repo
    except HFValidationError:
        valid = False
    if not valid:
        raise ConfigError(f"--to hub {repo}: a repository is named owner/name, in letters, digits, '-', '_' and '.'")


def model_files(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files that a model is loaded from, by name; and what else its folder holds, with why it is left out.

    Raises ConfigError where one of the first kind is only a link, and CheckpointError where they make no model.
    """
    chosen: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        wanted = any(fnmatch(path.name, pattern) for pattern in FILES)
        if path.is_symlink() and wanted:
            raise ConfigError(
                f"{path} is a symbolic link, which is not followed: make a plain folder by "
                f"`nanovlm export {folder} --to folder OUT`, and upload that"
            )
        if path.is_symlink():
            left_out[path.name] = "a symbolic link"
        elif not wanted:
            left_out[path.name] = "written anew" if path.name == CARD else "no part of the model"
        elif path.is_file():
            chosen[path.name] = path
        else:
            left_out[path.name] = "no file"
    read_config(folder)
    if "nanovlm" not in read_json(folder / "config.json"):
        raise ConfigError(
            f"{folder} was not written by nanovlm: make a folder of ours by `nanovlm export {folder} --to folder OUT`, "
            "and upload that"
        )
    return chosen, left_out


def places_named(folder: Path) -> list[str]:
    """What ``config.json`` tells everybody who may read it of this machine: the folders that it names."""
    found = []
    for role, part in read_json(folder / "config.json").items():
        for key, value in part.items() if isinstance(part, dict) else ():
            if isinstance(value, str) and value.startswith(("/", "~")):
                found.append(f"note that config.json names a place on a machine: {role}.{key}={value}")
    return found


def send(upload: Upload, repo: str, chosen: dict[str, Path]) -> Upload:
    """One commit with the card and the ``chosen`` files; it takes away what would be loaded with them by mistake."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    made = False
    try:
        with patience(ANSWER):
            there = find_repo(api, repo)
            check_visibility(repo, there, upload.public)
            if there is None:
                api.create_repo(repo, private=not upload.public)
                made = True
            stale = stale_files(there, upload.files)
            contents: dict[str, Any] = {CARD: upload.card.encode(), **chosen}
            commit = [CommitOperationAdd(name, content) for name, content in contents.items()]
            removal = [CommitOperationDelete(name) for name in stale]
            done = api.create_commit(repo, [*commit, *removal], commit_message="Upload a nanovlm model")
            check_arrived(repo, api.repo_info(repo, revision=done.oid), upload.files)
    except ConfigError:
        raise
    except Exception as error:  # of whichever HTTP library the installed version uses, too
        left = "\n  The repository was made, and holds no model yet; the same command goes on." if made else ""
        raise ConfigError(f"--to hub {repo}: {why_not_taken(error, repo)}{left}") from None
    return replace(upload, removed=tuple(stale), done=True)


def find_repo(api: Any, repo: str) -> Any:
    """What the hub knows of a repository; None if it shows none of this name."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.repo_info(repo, timeout=FIRST_ANSWER)
    except RepositoryNotFoundError:
        return None


def check_visibility(repo: str, there: Any, public: bool) -> None:
    """ConfigError where a repository that exists would show the model to more people, or to fewer, than was asked."""
    if there is None or bool(there.private) is not public:
        return
    if public:
        raise ConfigError(
            f"--public: {repo} exists and is private, and an upload does not change that: leave --public out, "
            "or make it public in its settings on the hub"
        )
    raise ConfigError(f"--to hub {repo}: it exists and is public: say --public if that is meant, or name another one")


def stale_files(there: Any, files: Iterable[str]) -> list[str]:
    """What a repository has of another model, and would be loaded with this one (a shard, a template)."""
    return [name for name in names(there) if any(fnmatch(name, pattern) for pattern in FILES) and name not in files]


def check_arrived(repo: str, there: Any, files: Iterable[str]) -> None:
    """ConfigError where the hub left out what it was sent, as a repository's ``.gitignore`` makes it do in silence."""
    if gone := sorted(set(files).difference(names(there))):
        raise ConfigError(
            f"--to hub {repo}: {', '.join(gone)} did not arrive: does the repository's .gitignore name what a model "
            "needs? Remove that there, and upload again"
        )


def names(there: Any) -> list[str]:
    """The files of a repository, as the hub tells them; none if there is no repository."""
    return [sibling.rfilename for sibling in (there.siblings or ())] if there else []


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within the block a hub that says nothing for so long is given up; the library itself would wait for ever."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # public, only not marked so

    session = get_session()  # one for the whole process
    before = session.timeout
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before
