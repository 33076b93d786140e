"""Datasets of the Hugging Face library, from the hub or a folder, as rows of plain Python values.

Pictures stay the encoded bytes they are: only what is used is decoded, in the loader's workers.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from PIL import Image

from nanovlm.errors import DataError, NanoVLMError, SkipSample
from nanovlm.hub import HubError, check_hub_id, local_folder, why


class Rows(Sequence[dict[str, Any]]):
    """Rows by index, read when asked for; they survive the way into a worker process."""

    def __init__(self, table: Any) -> None:
        self._table = table.with_format("arrow")  # rows as they are stored: the other formats decode every picture

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        row: dict[str, Any] = self._table[index].to_pylist()[0]
        return row


class StreamedRows:
    """Rows one after another, read (and downloaded) while they are asked for; each time from the first one."""

    def __init__(self, table: Any, size: int | None, what: tuple[str, str | None, str], columns: Sequence[str]) -> None:
        self._table = table.with_format("arrow")
        self.size = size  # if the source tells
        self._what, self._columns = what, columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with _refusals_of_reading(self._what[0], "source"):
            own = deepcopy(self._table)  # the library keeps a reader's place in it, and two may read at once
            for n, table in enumerate(own):
                if not n:
                    _check_columns(table.schema, self._columns, self._what, "source")
                yield table.to_pylist()[0]


def load_rows(source: str, config_name: str | None, split: str, columns: Sequence[str], option: str = "source") -> Rows:
    """One split of ``source`` (a hub id or a folder), which must have ``columns``.

    columns: names; ``images[]`` is a list, and ``texts[].user`` the field ``user`` of each thing in the list ``texts``.
    Raises HubError if there is no such source, and DataError if it is not the dataset that was expected.
    """
    import datasets

    with _refusals(source, option):
        builder = datasets.load_dataset_builder(_location(source), config_name)
        builder.download_and_prepare()
        if split in builder.info.splits and not builder.info.splits[split].num_examples:
            return Rows(datasets.Dataset.from_dict({}))  # the library would refuse, and knows no columns
        table = builder.as_dataset(split)
    _check_columns(table.features.arrow_schema, columns, (source, config_name, split), option)
    return Rows(table)


def stream_rows(source: str, config_name: str | None, split: str, columns: Sequence[str]) -> StreamedRows:
    """The same rows one after another, without a download of the whole; the columns are checked with the first row."""
    import datasets

    with _refusals(source, "source"):
        builder = datasets.load_dataset_builder(_location(source), config_name)
        table = builder.as_streaming_dataset(split)
    info = (builder.info.splits or {}).get(split)
    return StreamedRows(table, info.num_examples if info else None, (source, config_name, split), columns)


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
    folder = local_folder(source)
    return str(folder.resolve()) if folder else source  # a folder called `json` is not the library's reader of JSON


@contextmanager
def _refusals(source: str, option: str) -> Iterator[None]:
    """What the library raises, as ours: a source that is not to be had, or one that is not what was expected."""
    import datasets

    unreachable = None
    if not local_folder(source):
        check_hub_id(source, option)
        unreachable = _unreachable(source)
    offline, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, unreachable is not None
    try:
        with _refusals_of_reading(source, option, unreachable):
            yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


@contextmanager
def _refusals_of_reading(source: str, option: str, unreachable: Exception | None = None) -> Iterator[None]:
    """The same once the source has been found; ``unreachable`` is why the hub gave no answer, if it gave none."""
    try:
        yield
    except NanoVLMError:
        raise
    except Exception as error:  # of any library that this one builds on
        if isinstance(error, OSError) and not local_folder(source):
            raise HubError(source, option, why(unreachable or error), unreachable is not None) from None
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise DataError(
            f"{option}: {source!r} cannot be read as a dataset ({type(error).__name__}: {reason})"
        ) from None


def _unreachable(source: str) -> Exception | None:
    """Why the hub gives no answer at all. The library itself would try for half a minute before it used its cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(source, timeout=10)
    except HfHubHTTPError:  # an answer, about which the library has more to say
        return None
    except Exception as error:
        return error
    return None


def _check_columns(schema: Any, columns: Sequence[str], what: tuple[str, str | None, str], option: str) -> None:
    """A DataError that names the columns that are missing from ``what`` (source, configuration, split)."""
    found = _fields(schema)
    if missing := [column for column in columns if column not in found]:
        raise DataError(
            f"{option}: the rows of {' '.join(filter(None, what))!r} have no {', '.join(missing)}; "
            f"expected are {', '.join(columns)}, and there are {', '.join(found)}"
        )


def _fields(fields: Any, prefix: str = "") -> list[str]:
    """The names of a schema's fields, with ``[]`` behind a list and those within structs after a dot."""
    import pyarrow

    names = []
    for field in fields:
        name, kind = f"{prefix}{field.name}", field.type
        while pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
            name, kind = f"{name}[]", kind.value_type
        names.append(name)
        if pyarrow.types.is_struct(kind):
            names += _fields(kind.fields, f"{name}.")
    return names
