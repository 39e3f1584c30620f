"""Reading rows of files, folders and data sets of the Hugging Face hub. Each row has its file and line."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ossia.config import DataSection, DataSource, Sources, sources_of
from ossia.data.formats.row import doubled
from ossia.data.loose_json import row_of_cells
from ossia.errors import UserError, did_you_mean
from ossia.recipes import available
from ossia.recipes.examples import resolve

CHUNK_BYTES = 1 << 20
"""Approximate size of a chunk in bytes."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""File types that can be read. The first three may have .gz behind them."""
_LINES = (".jsonl", ".ndjson", ".json")  # also with .gz
_HUB_ID = re.compile(r"^(hub:)?(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<split>[\w.-]+(\[[\w%:]+\])?))?$")


@dataclass(frozen=True, slots=True)
class Row:
    """One row, or the reason why it cannot be read."""

    value: dict[str, Any] | None
    """The row as an object, or None if it cannot be read."""
    file: str
    line: int
    """The line in .jsonl and .csv files, the number of the item elsewhere. Counted from 1."""
    error: str = ""
    """The reason if `value` is None."""
    text: str = field(default="", repr=False)
    """The text of a row that cannot be read."""

    @property
    def where(self) -> str:
        """The place of the row, such as `data.jsonl:17`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a file as JSON lines. A chunk can be sent to another process."""

    file: str
    numbers: Sequence[int]
    """The `Row.line` of each line of `text`."""
    text: bytes
    """The JSON lines. The line of a row that could not be read is empty."""
    errors: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """Index of the line of a row that could not be read -> the reason and the text of the row."""

    def rows(self, only: int | None = None) -> Iterator[tuple[int, Row]]:
        """Yield the rows with their index in the chunk. Empty lines are skipped.

        Args:
            only: the number of the only row to yield. None: all rows.
        """
        for index, (number, line) in enumerate(zip(self.numbers, self.text.split(b"\n"), strict=False)):
            if only is not None and number != only:
                continue
            if index in self.errors:
                yield index, Row(None, self.file, number, *self.errors[index])
            elif line.strip():
                yield index, _row_of_json(line, self.file, number)


def settings_for(source: DataSource, common: DataSection) -> DataSection:
    """Return the settings for the rows of one source.

    A format of the source replaces the common one. The columns of the source are added to the common ones.

    Raises:
        UserError: two columns are mapped to the same key.
    """
    own = source.columns.values()
    columns = {**{column: key for column, key in common.columns.items() if key not in own}, **source.columns}
    for clash in doubled(columns):
        raise UserError(clash, where=source.path, do="leave one of them out")
    return common.model_copy(update={"format": source.format or common.format, "columns": columns})


def read_rows(sources: Sources) -> Iterator[Row]:
    """Yield the rows of files (.jsonl, .json, .csv, .parquet), folders of these, or hub ids such as `org/name@train`.

    A line that cannot be read becomes a `Row` with an error, and the rows after it are still read. Files are read
    during iteration. An existing path has precedence over a hub id of the same name.

    Raises:
        UserError: a source does not exist, has an unknown type, or needs a package that is missing.
    """
    for source in sources_of(sources):
        for chunk in read_chunks(source):
            yield from (row for _, row in chunk.rows())


def read_chunks(source: DataSource) -> Iterator[Chunk]:
    """Yield the rows of one source in chunks of about a megabyte. See `read_rows`.

    Raises:
        UserError: the source has no name, does not exist, has an unknown type, or needs a package that is missing.
    """
    path = resolve(source.path)
    hub = _HUB_ID.match(path)
    if not path:
        raise UserError("a data set without a name", do="name a file, a folder or a hub id")
    if hub and (hub[1] or not _looks_like_a_path(Path(path))):
        yield from _batched(_read_hub(hub["id"], source.split or hub["split"] or "train"))
        return
    if source.split:
        do = "limit takes the first rows of a file"
        raise UserError(f"split {source.split!r} is for hub data sets", where=source.path, do=do)
    for file in data_files(Path(path)):
        try:
            yield from _read(file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            do = "unpack it with gunzip, which reports the damage"
            raise UserError("The file is not a complete gzip file", where=str(file), why=str(error), do=do) from error


def _read(file: Path) -> Iterator[Chunk]:
    _refuse_other_kinds(file)
    kind = _suffix(file)
    if kind in (".jsonl", ".ndjson") or (kind == ".json" and _is_lines(file)):
        yield from _cut(file)
    else:
        yield from _batched(_READERS[kind](file))


def total_bytes(source: DataSource) -> int:
    """Return the size of a source's uncompressed content in bytes, for progress. It is 0 for hub data sets.

    Raises:
        UserError: a file has an unknown type, or a folder has no data files.
    """
    path = Path(resolve(source.path))
    if not source.path:
        return 0
    return sum(map(_size, data_files(path))) if path.exists() else 0


def _suffix(path: Path) -> str:
    """Return the file type from the name, in small letters. For `rows.jsonl.gz` it is `.jsonl`."""
    name = Path(path.name.lower())
    inner = Path(name.stem).suffix if name.suffix == ".gz" else ""
    return inner if inner in _LINES else name.suffix


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _size(path: Path) -> int:
    """Return the number of bytes of a file's content. A gzip file stores it at its end, modulo 4 GiB."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        if path.suffix.lower() != ".gz" or end < 4:
            return end
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def _is_lines(path: Path) -> bool:
    """Return whether a .json file has JSON lines: an object in its first line, and text in later lines."""
    with _open(path) as file:
        first = file.readline()
        if not any(line.strip() for line in file):
            return False
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _looks_like_a_path(path: Path) -> bool:
    """Return whether `a/b` is meant as a file, so that a misspelt file name is not looked up on the hub."""
    return path.exists() or _suffix(path) in SUFFIXES or path.parent.is_dir()


def data_files(path: Path) -> list[Path]:
    """Return the data files of a path: the file itself, or all in a folder and its subfolders, sorted.

    Names that begin with a dot are ignored in folders.

    Raises:
        UserError: the path does not exist, is not a regular file, has an unknown type, or has no data files.
    """
    if path.is_dir():
        list(path.iterdir())  # raises an OSError for a folder that cannot be read
        inside = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        found = sorted(p for p in inside if _suffix(p) in SUFFIXES and p.is_file())
        if not found:
            raise UserError(
                "The folder holds no data files", where=str(path), do=f"known types are {', '.join(SUFFIXES)}"
            )
        return found
    if path.exists() and not path.is_file():
        raise UserError("Not a regular file", where=str(path), do="write the rows to a file first")
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        recipe = did_you_mean(str(path), available())
        do = "check the path; hub data sets are written org/name@split, or hub:org/name"
        if near or recipe:
            do = (
                f"did you mean {path.parent / str(near)}?"
                if near
                else f"did you mean the recipe {recipe}? A recipe cannot be combined with other data"
            )
        raise UserError("No such file or folder", where=str(path), do=do)
    if _suffix(path) not in SUFFIXES:
        raise UserError(
            f"Unknown file type {path.suffix!r}", where=str(path), do=f"known types are {', '.join(SUFFIXES)}"
        )
    return [path]


def _cut(path: Path) -> Iterator[Chunk]:
    with _open(path) as file:
        first = 1
        while lines := file.readlines(CHUNK_BYTES):
            if first == 1:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            yield Chunk(str(path), range(first, first + len(lines)), b"".join(lines))
            first += len(lines)


def _batched(rows: Iterable[Row]) -> Iterator[Chunk]:
    lines: list[bytes] = []
    numbers: list[int] = []
    errors: dict[int, tuple[str, str]] = {}
    size, file = 0, ""
    for row in rows:
        if row.value is None:
            errors[len(lines)] = row.error, row.text
        line = b"" if row.value is None else json.dumps(row.value, default=str).encode("ascii")
        lines.append(line)
        numbers.append(row.line)
        size, file = size + len(line), row.file
        if size > CHUNK_BYTES:
            yield Chunk(file, numbers, b"\n".join(lines) + b"\n", errors)
            lines, numbers, errors, size = [], [], {}, 0
    if lines:
        yield Chunk(file, numbers, b"\n".join(lines) + b"\n", errors)


def _refuse_other_kinds(path: Path) -> None:
    """Raise one UserError for a compressed or binary file, instead of a problem for each of its lines."""
    with _open(path) as file:
        head = file.read(1024)
    kind = None
    if head.startswith(b"\x1f\x8b"):
        kind, do = "compressed (gzip)", f"rename it to {path.stem}.jsonl.gz if these are JSON lines, else unpack it"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
        kind, do = "UTF-16", f"iconv -f utf-16 -t utf-8 {path.name}"
    elif b"\0" in head and _suffix(path) != ".parquet":
        kind, do = "binary", f"data files are {', '.join(SUFFIXES)}, in UTF-8"
    if kind is not None:
        raise UserError(f"The file is {kind}", where=str(path), do=do)


def _row_of_json(line: bytes, file: str, number: int) -> Row:
    try:
        return _row(json.loads(line.decode("utf-8")), file, number)
    except UnicodeDecodeError as error:
        why = f"the line is not UTF-8: {error.reason} at byte {error.start}"
    except json.JSONDecodeError as error:  # the error's own line number counts within this line
        why = f"the line is not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
        if number == 1 and line.lstrip()[:1] in (b"{", b"["):
            why += "; if the file holds one value over several lines, name it .json"
    except RecursionError:
        why = "the line is nested too deeply"
    except ValueError as error:
        why = f"the line is not JSON: {error}"
    return Row(None, file, number, why, line.decode("utf-8", "replace"))


def _row(value: object, file: str, number: int) -> Row:
    if isinstance(value, dict):
        # A key with the value null counts as absent, because a table written as JSON has every column in every row.
        given = {key: item for key, item in value.items() if item is not None}
        return Row(_without_nulls(given) if _was_a_table(given) else given, file, number)
    kind = {list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return Row(None, file, number, f"the row is not a JSON object but {kind}", json.dumps(value))


def _read_json(path: Path) -> Iterator[Row]:
    try:
        with _open(path) as file:
            content = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        do = "rename it to .jsonl if every line is a JSON object of its own"
        raise UserError("The file is not JSON", where=str(path), why=str(error), do=do) from error
    if isinstance(content, dict):
        lists = [content[key] for key in ("data", "rows", "train") if isinstance(content.get(key), list)]
        content = lists[0] if lists else [content]
    if not isinstance(content, list):
        raise UserError("The file is neither a list of rows nor an object", where=str(path))
    for number, value in enumerate(content, start=1):
        yield _row(value, str(path), number)


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # conversations can be longer than the default of 128 KiB
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{path}:{content[: error.start].count(10) + 1}"
        do = "save it as UTF-8, or: iconv -f latin1 -t utf-8"
        raise UserError(
            "The file is not UTF-8", where=where, why=f"byte {error.start}: {error.reason}", do=do
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # surplus cells have the key None
    names = list(reader.fieldnames or [])
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"The column {twice!r} occurs twice", where=f"{path}:1", do="rename one of them")
    start = 2  # a quoted cell may have several lines, so the number of a row is that of its first line
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Row(None, str(path), start, f"the line is not CSV: {error}")
            continue
        if cells is None:
            return
        yield _row_of_cells(cells, str(path), start)
        start = reader.line_num + 1


def _row_of_cells(cells: dict[str, Any], file: str, line: int) -> Row:
    text = json.dumps(list(cells.values()))  # a list, which the repairs do not read as a row
    if None in cells or None in cells.values():
        return Row(None, file, line, "the row and the header have different numbers of cells", text)
    try:
        return Row(row_of_cells(cells), file, line)
    except ValueError as error:
        return Row(None, file, line, str(error), text)


def _read_parquet(path: Path) -> Iterator[Row]:
    _need("pyarrow", f"reading {path.name}")
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            for value in batch.to_pylist():
                number += 1
                yield Row(_without_nulls(value), str(path), number)
    except pa.ArrowException as error:
        raise UserError("The file is not Parquet", where=str(path), why=str(error)) from error


def _read_hub(id: str, split: str) -> Iterator[Row]:
    _need("datasets", f"there is no file or folder {id}; reading it from the hub")
    import datasets

    try:
        rows = datasets.load_dataset(id, split=split)
    except Exception as error:  # the library raises many types, from network errors to ValueError
        do = "check the name and the split (org/name@split), and the network or the local cache"
        raise UserError("The data set cannot be loaded", where=f"hub:{id}@{split}", why=str(error), do=do) from error
    for number, value in enumerate(rows, start=1):
        yield Row(_without_nulls(value), f"hub:{id}@{split}", number)


def _was_a_table(row: dict[str, Any]) -> bool:
    """Return whether a tool of the row has parameters that are null.

    Such rows come from a table, which gave each tool the parameters of all tools.
    """
    tools = row.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        parameters = function.get("parameters") if isinstance(function, dict) else None
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        if isinstance(properties, dict) and None in properties.values():
            return True
    return False


def _without_nulls(value: Any) -> Any:
    """Return the value without keys whose value is null. Column formats fill absent keys with null."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


_READERS = {".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _need(package: str, purpose: str) -> None:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # a folder of that name that is not a package has no origin
        raise UserError(f"{purpose} needs the package {package}", do="pip install -e '.[datasets]' in the checkout")
