"""Files that are whole or not there."""

from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write text in UTF-8 to a temporary name beside ``file``, and rename it; missing folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
