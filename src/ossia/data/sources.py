"""Where rows come from: files, folders of files, and data sets of the Hugging Face hub. Each row knows its place."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossia.data.settings import DataSettings, Format
from ossia.errors import UserError, did_you_mean
from ossia.recipes import available
from ossia.recipes.examples import resolve

CHUNK_BYTES = 1 << 20
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"^(hub:)?(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<split>[\w.-]+(\[[\w%:]+\])?))?$")
_JSON_COLUMNS = (  # lists and objects, written as JSON text in CSV files
    "messages", "tools", "functions", "prompt", "completion", "conversations", "items", "input", "output", "history",
    "chosen", "rejected", "preferred_output", "non_preferred_output", "preferred_completion",
    "non_preferred_completion",
    "generations", "correctness_math_verify", "correctness_llama", "is_reasoning_complete", "finish_reasons",
    "chat_template_kwargs",
)  # fmt: skip
_TEXT_TOO = (
    "prompt",
    "completion",
    "input",
    "output",
    "chosen",
    "rejected",
    "tools",
)  # text that may begin with [ or {


@dataclass(frozen=True, slots=True)
class Source:
    """One data set of a mixture."""

    path: str
    format: Format | None = None
    """Row format; None leaves it to the settings."""
    split: str | None = None
    """Split of a hub data set; None: the one after `@`, else train."""
    columns: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    """At most so many usable conversations, from the start."""
    weight: float = 1.0
    """How often each conversation counts."""

    def settings(self, common: DataSettings) -> DataSettings:
        """The settings for the rows of this source."""
        columns = {**common.columns, **self.columns}
        return dataclasses.replace(common, format=self.format or common.format, columns=columns)


Sources = str | Path | Source | Iterable[str | Path | Source]


@dataclass(frozen=True, slots=True)
class Row:
    """One row, or the reason why there is none. `line` counts from 1: lines in .jsonl and .csv, items elsewhere."""

    value: dict[str, Any] | None
    file: str
    line: int
    error: str = ""
    text: str = field(default="", repr=False)
    """Of a line that is not JSON: what it says."""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a file as JSON lines, small enough to be handed to another process."""

    file: str
    numbers: Sequence[int]
    """The `Row.line` of each line of `text`."""
    text: bytes
    errors: Mapping[int, str] = field(default_factory=dict)
    """Index of a line that stands for a row that could not be read -> why."""

    def rows(self, only: int | None = None) -> Iterator[tuple[int, Row]]:
        """The rows with their index in the chunk, or the one of that number. Empty lines are none."""
        for index, (number, line) in enumerate(zip(self.numbers, self.text.split(b"\n"), strict=False)):
            if only is not None and number != only:
                continue
            if index in self.errors:
                yield index, Row(None, self.file, number, self.errors[index])
            elif line.strip():
                yield index, _row_of_json(line, self.file, number)


def sources_of(named: Sources) -> list[Source]:
    """A list of sources from whatever names them."""
    listed = [named] if isinstance(named, (str, Path, Source)) else named
    return [source if isinstance(source, Source) else Source(str(source)) for source in listed]


def read_rows(sources: Sources) -> Iterator[Row]:
    """The rows of files (.jsonl, .json, .csv, .parquet), folders of these, or hub ids such as `org/name@train`.

    A line that cannot be read becomes a `Row` with an error; the rows after it are still read. Files are read as they
    are consumed. A path that exists takes precedence over a hub id of the same name.

    Raises:
        UserError: a source does not exist, has an unknown type, or needs a package that is missing.
    """
    for source in sources_of(sources):
        for chunk in read_chunks(source):
            yield from (row for _, row in chunk.rows())


def read_chunks(source: Source) -> Iterator[Chunk]:
    """The same rows in pieces of about a megabyte."""
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
        _refuse_other_kinds(file)
        if file.suffix in (".jsonl", ".ndjson"):
            yield from _cut(file)
        else:
            yield from _batched(_READERS[file.suffix](file))


def total_bytes(source: Source) -> int:
    """Size of a source's files on disk, for progress; 0 for hub data sets."""
    path = Path(resolve(source.path))
    return sum(file.stat().st_size for file in data_files(path)) if path.exists() else 0


def _looks_like_a_path(path: Path) -> bool:
    """Whether `a/b` means a file, so that a misspelt file name is not looked up on the hub."""
    return path.exists() or path.suffix in SUFFIXES or path.parent.is_dir()


def data_files(path: Path) -> list[Path]:
    """The data files that a path stands for: itself, or all of them in a folder and below, sorted."""
    if path.is_dir():
        list(path.iterdir())  # raises where nobody may look
        inside = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        found = sorted(p for p in inside if p.suffix in SUFFIXES and p.is_file())
        if not found:
            raise UserError("The folder holds no data files", where=str(path), do=f"known are {', '.join(SUFFIXES)}")
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
                else f"did you mean the recipe {recipe}? It stands alone"
            )
        raise UserError("No such file or folder", where=str(path), do=do)
    if path.suffix not in SUFFIXES:
        raise UserError(f"Unknown file type {path.suffix!r}", where=str(path), do=f"known are {', '.join(SUFFIXES)}")
    return [path]


def _cut(path: Path) -> Iterator[Chunk]:
    with path.open("rb") as file:
        first = 1
        while lines := file.readlines(CHUNK_BYTES):
            if first == 1:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            yield Chunk(str(path), range(first, first + len(lines)), b"".join(lines))
            first += len(lines)


def _batched(rows: Iterable[Row]) -> Iterator[Chunk]:
    lines: list[bytes] = []
    numbers: list[int] = []
    errors: dict[int, str] = {}
    size, file = 0, ""
    for row in rows:
        if row.value is None:
            errors[len(lines)] = row.error
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
    """One sentence about a compressed or binary file, instead of one about each of its lines."""
    with path.open("rb") as file:
        head = file.read(1024)
    kind = None
    if head.startswith(b"\x1f\x8b"):
        kind, do = "compressed (gzip)", f"gunzip < {path.name} > plain.jsonl"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
        kind, do = "UTF-16", f"iconv -f utf-16 -t utf-8 {path.name}"
    elif b"\0" in head and path.suffix != ".parquet":
        kind, do = "binary", f"data files are {', '.join(SUFFIXES)}, in UTF-8"
    if kind is not None:
        raise UserError(f"The file is {kind}", where=str(path), do=do)


def _row_of_json(line: bytes, file: str, number: int) -> Row:
    try:
        return _row(json.loads(line.decode("utf-8")), file, number)
    except UnicodeDecodeError as error:
        why = f"the line is not UTF-8: {error.reason} at byte {error.start}"
    except json.JSONDecodeError as error:  # its own line number would be that within the line
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
        # A key that is null was absent: tables written as JSON name every column in every row.
        return Row({key: item for key, item in value.items() if item is not None}, file, number)
    kind = {list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return Row(None, file, number, f"the row is not a JSON object but {kind}", json.dumps(value))


def _read_json(path: Path) -> Iterator[Row]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
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
    csv.field_size_limit(2**31 - 1)  # conversations are longer than the default of 128 KiB
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{path}:{content[: error.start].count(10) + 1}"
        do = "save it as UTF-8, or: iconv -f latin1 -t utf-8"
        raise UserError(
            "The file is not UTF-8", where=where, why=f"byte {error.start}: {error.reason}", do=do
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    names = list(reader.fieldnames or [])
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"The column {twice!r} stands there twice", where=f"{path}:1", do="rename one of them")
    start = 2  # a quoted cell may span lines, so a row is named by its first
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
    if "" in cells or None in cells.values():
        return Row(None, file, line, "the row has another number of cells than the header")
    value: dict[str, Any] = dict(cells)
    for column in _JSON_COLUMNS:
        text = value.get(column, "")
        if text.lstrip().startswith(("[", "{")):
            try:
                value[column] = json.loads(text)
            except ValueError as error:
                if column not in _TEXT_TOO:
                    return Row(None, file, line, f"column {column} is not JSON: {error}")
    return Row(value, file, line)


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
    except Exception as error:  # the library raises many kinds, from network errors to ValueError
        do = "check the name and the split (org/name@split), and the network or the local cache"
        raise UserError("The data set cannot be loaded", where=f"hub:{id}@{split}", why=str(error), do=do) from error
    for number, value in enumerate(rows, start=1):
        yield Row(_without_nulls(value), f"hub:{id}@{split}", number)


def _without_nulls(value: Any) -> Any:
    """Column formats fill absent keys of nested objects with null; absent they were and absent they are."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


_READERS = {".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _need(package: str, purpose: str) -> None:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # a mere folder of that name has no origin
        raise UserError(f"{purpose} needs the package {package}", do="pip install -e '.[datasets]' in the checkout")
