"""Datasets of the Hugging Face library, from the hub or a folder, as rows of plain Python values.

Pictures stay the encoded bytes they are: only what is used is decoded, in the loader's workers.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.data.shards import Place, TableShards, read_shards
from nanovlm.errors import DataError, NanoVLMError, SkipSample, named
from nanovlm.hub import HubError, check_hub_id, local_folder, why

Kind = Literal["text", "numbers", "pictures"]
Columns = Mapping[str, Kind]
"""What a row must have: ``images[]`` is a list, and ``texts[].user`` the field ``user`` of each thing in ``texts``."""


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
    """Rows one after another, read (and downloaded) while they are asked for; each time anew.

    files: one for each shard of the table
    """

    def __init__(
        self, table: Any, size: int | None, what: tuple[str, str | None, str], columns: Columns, files: Sequence[str]
    ) -> None:
        # Two may read at once, each in a thread of its own, and the library keeps a reader's place in the table (and
        # what belongs to a thread in its file system): so each has a table of its own.
        self._table = pickle.dumps(table.with_format("arrow"))
        self.size = size  # if the source tells
        self._what, self._columns, self._files = what, columns, files

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for _, row, _ in self.read())

    def read(
        self, ranks: Ranks = ALONE, state: Sequence[int] | None = None, stop: int = 0
    ) -> Iterator[tuple[int, dict[str, Any], Any]]:
        """One rank's rows from a state on, each with its number and the state after it (see ``read_shards``)."""
        with _refusals_of_reading(self._what[0], "source"):
            shards, first = TableShards(pickle.loads(self._table), self._files), True
            start = self._place(state, len(shards))
            for number, table, place in read_shards(shards, ranks, start, stop):
                if first:
                    _check_columns(table.schema, self._columns, self._what, "source")
                    first = False
                yield number, table.to_pylist()[0], (*place, len(shards))

    def _place(self, state: Sequence[int] | None, shards: int) -> Place:
        """DataError where the shards are no longer those that a state was taken of."""
        *place, before = state or (0, 0, 0, shards)
        if before != shards:
            rows = f"source: the rows of {' '.join(filter(None, self._what))!r}"
            raise DataError(
                f"{rows} are in {shards} files, and were in {before} when the run was interrupted; "
                "bring those back, or begin a new run"
            )
        return Place(*place)


def load_rows(source: str, config_name: str | None, split: str, columns: Columns, option: str = "source") -> Rows:
    """One split of ``source`` (a hub id or a folder), which must have ``columns``.

    Raises HubError if there is no such source, and DataError if it is not the dataset that was expected.
    """
    import datasets

    with _refusals(source, option):
        builder = _prepared(source, config_name)
        if split in builder.info.splits and not builder.info.splits[split].num_examples:
            return Rows(datasets.Dataset.from_dict({}))  # the library would refuse, and knows no columns
        table = builder.as_dataset(split)
    _check_columns(table.features.arrow_schema, columns, (source, config_name, split), option)
    return Rows(table)


def stream_rows(source: str, config_name: str | None, split: str, columns: Columns) -> StreamedRows:
    """The same rows one after another, without a download of the whole; the columns are checked with the first row."""
    import datasets

    with _refusals(source, "source"):
        builder = datasets.load_dataset_builder(_location(source), config_name)
        table = builder.as_streaming_dataset(split)
    info = (builder.info.splits or {}).get(split)
    size, files = info.num_examples if info else None, (builder.config.data_files or {}).get(split) or ()
    return StreamedRows(table, size, (source, config_name, split), columns, [str(file) for file in files])


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


def _prepared(source: str, config_name: str | None) -> Any:
    """The library's builder of a configuration, whose rows are in its cache.

    For a folder the library finds them again by the folder's last name alone: another folder of that name, or other
    rows in the same one, would give the old rows. So a folder has a cache of its own, and each state of its files one
    within; the earlier ones are of no use any more and go.
    """
    import datasets

    folder = local_folder(source)
    if not folder:
        builder = datasets.load_dataset_builder(source, config_name)
        builder.download_and_prepare()
        return builder
    own = Path(datasets.config.HF_DATASETS_CACHE, "folders", _digest(folder.resolve()))
    builder = datasets.load_dataset_builder(_location(source), config_name, cache_dir=str(own))
    files = [Path(file) for split in builder.config.data_files.values() for file in split]
    stats = [file.stat() if file.is_file() else None for file in files]  # a README.md may name files of other places
    states = [(stat.st_size, stat.st_mtime_ns) for stat in stats if stat]
    # what the README.md says of the columns, and the library's way of reading them, decide about the rows as well
    current = _digest(builder.config.data_files, states, builder.info.features, builder.hash)
    builder.download_and_prepare(str(own / builder.config.name / current))
    for cache in (own / builder.config.name).iterdir():
        if cache.is_dir() and not cache.name.startswith(current):
            shutil.rmtree(cache, ignore_errors=True)
    return builder


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


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
        raise DataError(f"{option}: {source!r} cannot be read as a dataset ({named(error)})") from None


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


def _check_columns(schema: Any, columns: Columns, what: tuple[str, str | None, str], option: str) -> None:
    """A DataError that names the columns of ``what`` (source, configuration, split) that are missing or something else.

    A column without any value has no type, and is fine.
    """
    found = _fields(schema)
    rows = f"{option}: the rows of {' '.join(filter(None, what))!r}"
    if missing := [column for column in columns if column not in found]:
        raise DataError(
            f"{rows} have no {', '.join(missing)}; expected are {', '.join(columns)}, and there are {', '.join(found)}"
        )
    wrong = [
        f"{column} holds {found[column]} instead of {kind}"
        for column, kind in columns.items()
        if not _is_a(kind, found[column])
    ]
    if wrong:
        raise DataError(f"{rows} are of another kind than expected: {', '.join(wrong)}")


def _fields(fields: Any, prefix: str = "") -> dict[str, Any]:
    """A schema's fields by name, with ``[]`` behind a list and those within structs after a dot, and their types."""
    import pyarrow

    found = {}
    for field in fields:
        name, kind = f"{prefix}{field.name}", field.type
        while pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
            name, kind = f"{name}[]", kind.value_type
        found[name] = kind
        if pyarrow.types.is_struct(kind):
            found |= _fields(kind.fields, f"{name}.")
    return found


def _is_a(kind: Kind, found: Any) -> bool:
    """Whether a column of the Arrow type ``found`` holds text, numbers, or pictures (see ``picture``)."""
    from pyarrow import types

    if types.is_dictionary(found):
        found = found.value_type
    text = types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
    number = types.is_integer(found) or types.is_floating(found)
    encoded = types.is_binary(found) or types.is_large_binary(found) or types.is_binary_view(found)
    described = types.is_struct(found) and not {"bytes", "path"}.isdisjoint(field.name for field in found.fields)
    right = {"text": text, "numbers": number, "pictures": text or encoded or described}
    return types.is_null(found) or right[kind]
