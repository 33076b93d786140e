"""What tests may expect of another library depends on its version: the oldest supported ones can less."""

from importlib.metadata import version

from packaging.version import Version


def older(library: str, than: str) -> bool:
    return Version(version(library)) < Version(than)
