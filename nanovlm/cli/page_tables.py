"""The tables of ``plugins/README.md`` and ``experiments/README.md``, made of what is there, and put into the pages."""

from pathlib import Path

from nanovlm.bench.tables import END, row
from nanovlm.cli.listed_experiments import listed_experiments
from nanovlm.errors import ConfigError
from nanovlm.files import write_whole
from nanovlm.plugins import Registries
from nanovlm.registry import Entry

COMPONENTS = "nanovlm list --markdown plugins/README.md"
EXPERIMENTS = "nanovlm list --experiments --markdown experiments/README.md"


def components_block(registries: Registries) -> str:
    """Every component, between the two comments that a page has them in."""
    rows = [
        [registry.kind, f"`{entry.name}`", entry.doc, options(entry), link(Path(entry.plugin.path).name)]
        for registry in registries
        for entry in registry
    ]
    return block(COMPONENTS, ["kind", "name", "what it is", "options", "file"], rows)


def options(entry: Entry) -> str:
    return ", ".join(f"`{name}`" for name in entry.cls.Config.model_fields)  # type: ignore[attr-defined]


def experiments_block() -> str:
    """Every experiment and ablation that comes with nanovlm."""
    listed = listed_experiments()
    folder = Path(next(one.path for one in listed)).parent
    rows = [
        [
            link(Path(one.path).relative_to(folder).as_posix(), one.name),
            one.asks,
            one.components,
            one.data,
            one.budget,
            f"`{one.command}`",
        ]
        for one in listed
    ]
    return block(EXPERIMENTS, ["name", "what it asks", "components", "data", "budget", "command"], rows)


def block(command: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [row(header), row(["---"] * len(header)), *(row([cell(text) for text in cells]) for cells in rows)]
    return "\n".join([begin(command), "", *lines, "", END])


def begin(command: str) -> str:
    return f"<!-- made by: {command} -->"


def link(path: str, text: str = "") -> str:
    return f"[{text or path}]({path})"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def renew(page: Path, made: str) -> None:
    """Put a block into the place of the one that a page has; a ConfigError where it has none."""
    first = made.partition("\n")[0]
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--markdown {page}: cannot be read: {error.strerror}") from None
    before, _, rest = text.partition(first)
    _, end, after = rest.partition(END)
    if not end:
        raise ConfigError(f"--markdown {page}: it has no place for the table, which is a line {first} and a line {END}")
    write_whole(page, f"{before}{made}{after}")
