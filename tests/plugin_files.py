"""Plugins written by tests: files, files dropped into the folder of the defaults, and installed distributions."""

import importlib
import sys
from pathlib import Path

import nanovlm_plugins


def plugin(name: str = "sum", hook: str = "register_projectors", argument: str = "register", body: str = "") -> str:
    """The source of a plugin that registers one projector under ``name``."""
    return f"""
from torch import nn
from nanovlm import ComponentConfig, hookimpl

class Sum(nn.Module):
    class Config(ComponentConfig):
        factor: int = 1

    def __init__(self, config, grid, text_dim):
        super().__init__()
        self.num_tokens = 1
        self.linear = nn.Linear(grid.dim, text_dim)

    def forward(self, patches):
        return self.linear(patches.sum(1, keepdim=True))

@hookimpl
def {hook}({argument}):
    {body or f"{argument}({name!r}, Sum)"}
"""


class Site:
    """A folder on ``sys.path`` with distributions as an installer would leave them, and a second one of defaults."""

    version = "1.2"  # of each distribution that is installed

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.defaults = folder / "site", folder / "defaults"
        self.folder.mkdir()
        self.defaults.mkdir()
        monkeypatch.syspath_prepend(self.folder)
        monkeypatch.setattr(nanovlm_plugins, "__path__", [*nanovlm_plugins.__path__, str(self.defaults)])

    def install(self, distribution: str, sources: dict[str, str], entry_points: dict[str, str] | None = None) -> None:
        """``sources`` by module; by default every module is an entry point."""
        for module, source in sources.items():
            (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{distribution.replace('-', '_')}-{self.version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {self.version}\n")
        named = entry_points or {module: module for module in sources}
        lines = "".join(f"{name} = {value}\n" for name, value in named.items())
        (info / "entry_points.txt").write_text(f"[nanovlm]\n{lines}")
        importlib.invalidate_caches()

    def drop(self, module: str, source: str) -> Path:
        """A file in the folder of the default plugins."""
        file = self.defaults / f"{module}.py"
        file.write_text(source)
        importlib.invalidate_caches()
        return file

    def forget(self) -> None:
        """Drop what was imported from here, so that the next test may write other modules of the same names."""
        places = (str(self.folder), str(self.defaults))
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(places):
                del sys.modules[name]
