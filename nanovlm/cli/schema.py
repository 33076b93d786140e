"""``nanovlm schema``: what editors need to complete and check experiment files."""

import json
from typing import Annotated

import typer

from nanovlm.cli.options import PluginFiles
from nanovlm.errors import ConfigError
from nanovlm.json_schema import experiment_schema
from nanovlm.plugins import load_plugins


def command(
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Leave out all plugins that do not come with nanovlm itself.")
    ] = False,
    plugin: PluginFiles = None,
) -> None:
    """Print the JSON schema of experiment files, with every component that is installed.

    Keep it beside your experiments (nanovlm schema > experiment.schema.json). Editors whose support for YAML is
    yaml-language-server, VS Code and Neovim among them, then complete, explain and check a file whose first line is

    # yaml-language-server: $schema=experiment.schema.json
    """
    if defaults and plugin:
        raise ConfigError(f"--defaults would leave out what --plugin {plugin[0]} adds: give one of the two")
    registries = load_plugins(plugin or ())
    schema = experiment_schema(registries.defaults() if defaults else registries)
    print(json.dumps(schema, indent=1, ensure_ascii=False))
