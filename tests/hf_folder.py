"""Folders as the hub has them.

Datasets are Parquet files, and a README.md whose header says which belong to what; models have a config.json.
"""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image


def encoded(colour: str) -> bytes:
    """A picture of one colour as PNG."""
    file = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(file, "PNG")
    return file.getvalue()


def cell(colour: str) -> dict[str, Any]:
    """A picture as a row holds it."""
    return {"bytes": encoded(colour), "path": f"{colour}.png"}


def write_dataset(folder: Path, configs: dict[str, list[dict[str, Any]]], features: Any, split: str = "train") -> Path:
    """A dataset with these rows in each of its ``configs`` (the subsets)."""
    from datasets import Dataset, Features

    header = ["---", "configs:"]
    for name, rows in configs.items():
        columns = {key: [row[key] for row in rows] for key in features}
        file = folder / name / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        Dataset.from_dict(columns, features=Features(features)).to_parquet(file)
        header += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*header, "---", ""]))
    return folder


def cauldron_features() -> dict[str, Any]:
    from datasets import Image, List, Value

    return {"images": List(Image()), "texts": List({key: Value("string") for key in ("user", "assistant", "source")})}


def cauldron_row(colours: str, *turns: tuple[str | None, str | None]) -> dict[str, Any]:
    """A row with pictures of these colours and turns of (user, assistant)."""
    texts = [{"user": user, "assistant": assistant, "source": "here"} for user, assistant in turns]
    return {"images": [cell(colour) for colour in colours.split()], "texts": texts}


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Change a model's ``config.json``: a value of None takes the key out."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
