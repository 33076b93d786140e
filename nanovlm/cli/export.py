"""``nanovlm export``: a model as a plain folder, for transformers, or on the hub."""

from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from nanovlm.cli.options import PluginFiles, TokenizerChoice
from nanovlm.errors import ConfigError
from nanovlm.hub import MODEL, fetch
from nanovlm.interop.opening import find_model, load_model
from nanovlm.plugins import Registries, load_plugins


class To(StrEnum):
    FOLDER = "folder"
    TRANSFORMERS = "transformers"
    HUB = "hub"


class Dtype(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run folder, a model folder, or a hub id.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The folder to write; for the hub, owner/name.")],
    to: Annotated[
        To,
        typer.Option(
            help="folder: a plain model folder, with LoRA merged. transformers: one that transformers loads without "
            "nanovlm. hub: an upload, with a model card."
        ),
    ],
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the weights. By default fp32; on the hub, those of the folder.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="On the hub, for everybody; else private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="For the hub: write the card, list the files, upload nothing.")
    ] = False,
    tokenizer: TokenizerChoice = "",
    plugin: PluginFiles = None,
) -> None:
    """Write a model for use elsewhere."""
    if to is not To.HUB and (public or dry_run):
        raise ConfigError(f"--{'public' if public else 'dry-run'} is for --to hub")
    source, registries = find_model(model), load_plugins(plugin or ())
    if to is To.HUB:
        lines = upload(source, target, registries, dtype, tokenizer, public, dry_run)
    else:
        lines = write(to, source, Path(target), registries, dtype or Dtype.FP32, tokenizer)
    print("\n".join(lines))


def write(to: To, source: str, target: Path, registries: Registries, dtype: Dtype, tokenizer: str) -> list[str]:
    """Write a folder; what is to be said of it."""
    from nanovlm.interop.export import export_folder, export_transformers

    loaded = load_model(source, registries, "cpu", tokenizer)
    if to is To.TRANSFORMERS:
        return export_transformers(loaded, target, registries, dtype.value).lines
    export_folder(loaded, target, dtype.value)
    return [f"{target}: a model folder in {dtype.value}; nanovlm generate --model {target} --prompt ..."]


def upload(
    source: str, repo: str, registries: Registries, dtype: Dtype | None, tokenizer: str, public: bool, dry_run: bool
) -> list[str]:
    """Upload a model folder as it is, or a plain one made of it where something is to change; what is to be said."""
    from nanovlm.interop.exported import own_folder
    from nanovlm.interop.hub_upload import push

    folder = fetch(source, MODEL, option="model")
    if dtype is None and not tokenizer and own_folder(folder) == folder:
        return push(folder, repo, public=public, dry_run=dry_run).lines
    with TemporaryDirectory() as scratch:
        plain, chosen = Path(scratch, "model"), dtype or Dtype.FP32
        write(To.FOLDER, source, plain, registries, chosen, tokenizer)
        changes = [f"The weights are stored in {chosen.value}; adapters (LoRA), if there were any, are merged."]
        return push(plain, repo, folder, public, dry_run, changes).lines
