"""Datasets of the Hugging Face library, from the hub or a folder, as rows of plain Python values.

Pictures stay the encoded bytes they are: only what is used is decoded, in the loader's workers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from nanovlm.errors import DataError, SkipSample
from nanovlm.hub import HubError, local_folder


class Rows(Sequence[dict[str, Any]]):
    """Rows by index, read when asked for; they survive the way into a worker process."""

    def __init__(self, table: Any) -> None:
        self._table = table.with_format("arrow")  # rows as they are stored: the other formats decode every picture

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        row: dict[str, Any] = self._table[index].to_pylist()[0]
        return row


def load_rows(source: str, config_name: str | None, split: str, columns: Sequence[str], option: str = "source") -> Rows:
    """One split of ``source`` (a hub id or a folder), which must have ``columns``.

    columns: names; ``texts.user`` is the field ``user`` within ``texts``, however many of them a row has.
    Raises HubError if there is no such source, and DataError if it is not the dataset that was expected.
    """
    from datasets import load_dataset

    with _refusals(source, option):
        table = load_dataset(_location(source), config_name, split=split)
    found = _fields(table.features.arrow_schema)
    if missing := [column for column in columns if column not in found]:
        what = " ".join(filter(None, (source, config_name, split)))
        raise DataError(
            f"{option}: the rows of {what!r} have no {', '.join(missing)}; "
            f"expected are {', '.join(columns)}, and there are {', '.join(found)}"
        )
    return Rows(table)


def config_names(source: str, option: str = "source") -> list[str]:
    """The configurations (subsets) that a source has. Raises HubError if there is no such source."""
    from datasets import get_dataset_config_names

    with _refusals(source, option):
        names: list[str] = get_dataset_config_names(_location(source))
        return names


def picture(cell: Any) -> bytes | str:
    """What a row holds for a picture: its bytes, or the path of a file. Raises SkipSample if it holds neither."""
    found = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
    if not found:
        raise SkipSample("no picture")
    result: bytes | str = found
    return result


def one_colour(colour: str) -> dict[str, Any]:
    """A picture as a row holds it, for rows that are written out."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def _location(source: str) -> str:
    return str(local_folder(source) or source)


@contextmanager
def _refusals(source: str, option: str) -> Iterator[None]:
    """What the library raises, as ours: a source that is not to be had, or one that is not what was expected."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (OSError, ValueError, DatasetsError) as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
        unreachable = isinstance(error, OSError | HFValidationError)  # no network, no such dataset, no hub id
        if unreachable and not local_folder(source):
            raise HubError(source, option, f"the Hugging Face hub did not give it ({reason})") from None
        raise DataError(f"{option}: {source!r} cannot be read as a dataset ({reason})") from None


def _fields(fields: Any, prefix: str = "") -> list[str]:
    """The names of a schema's fields, those within lists and structs after a dot."""
    import pyarrow

    names = []
    for field in fields:
        names.append(f"{prefix}{field.name}")
        kind = field.type
        while pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
            kind = kind.value_type
        if pyarrow.types.is_struct(kind):
            names += _fields(kind.fields, f"{prefix}{field.name}.")
    return names
