"""Where rows come from: files, folders of files, and data sets of the Hugging Face hub. Each row knows its place."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia.errors import UserError, did_you_mean
from ossia.recipes.examples import resolve

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"^(hub:)?(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<split>[\w.-]+(\[[\w%:]+\])?))?$")
_JSON_COLUMNS = ("messages", "tools", "functions", "prompt", "completion")  # lists, written as JSON text in CSV files


@dataclass(frozen=True, slots=True)
class Row:
    """One row, or the reason why there is none. `line` counts from 1: lines in .jsonl and .csv, items elsewhere."""

    value: dict[str, Any] | None
    file: str
    line: int
    error: str = ""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


def read_rows(sources: str | Path | Iterable[str | Path]) -> Iterator[Row]:
    """The rows of files (.jsonl, .json, .csv, .parquet), folders of these, or hub ids such as `org/name@train`.

    A line that cannot be read becomes a `Row` with an error; the rows after it are still read. Files are read as they
    are consumed. A path that exists takes precedence over a hub id of the same name.

    Raises:
        UserError: a source does not exist, has an unknown type, or needs a package that is missing.
    """
    for named in [sources] if isinstance(sources, (str, Path)) else sources:
        source = resolve(str(named))
        hub = _HUB_ID.match(str(source))
        if hub and (hub[1] or not _looks_like_a_path(Path(source))):
            yield from _read_hub(hub["id"], hub["split"] or "train")
        else:
            for path in data_files(Path(source)):
                yield from _read_file(path)


def _looks_like_a_path(path: Path) -> bool:
    """Whether `a/b` means a file, so that a misspelt file name is not looked up on the hub."""
    return path.exists() or path.suffix in SUFFIXES or path.parent.is_dir()


def data_files(path: Path) -> list[Path]:
    """The data files that a path stands for: itself, or all of them in a folder and below, sorted."""
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not found:
            raise UserError("The folder holds no data files", where=str(path), do=f"known are {', '.join(SUFFIXES)}")
        return found
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        do = f"did you mean {path.parent / near}?" if near else "check the path; hub data sets are written hub:org/name"
        raise UserError("No such file or folder", where=str(path), do=do)
    if path.suffix not in SUFFIXES:
        raise UserError(f"Unknown file type {path.suffix!r}", where=str(path), do=f"known are {', '.join(SUFFIXES)}")
    return [path]


def _read_file(path: Path) -> Iterator[Row]:
    readers = {".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    return readers.get(path.suffix, _read_jsonl)(path)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield _row_of_json(line, str(path), number)


def _row_of_json(line: bytes, file: str, number: int) -> Row:
    try:
        return _row(json.loads(line.decode("utf-8")), file, number)
    except UnicodeDecodeError as error:
        return Row(None, file, number, f"the line is not UTF-8: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:  # its own line number would be that within the line
        return Row(None, file, number, f"the line is not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return Row(None, file, number, f"the line is not JSON: {error}")


def _row(value: object, file: str, number: int) -> Row:
    if isinstance(value, dict):
        return Row(value, file, number)
    return Row(None, file, number, f"the row is not a JSON object but {type(value).__name__}")


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
    text = path.read_bytes().decode("utf-8-sig", "replace")
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
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
                if column not in ("prompt", "completion"):  # these may be text that begins with a bracket
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


def _need(package: str, purpose: str) -> None:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # a mere folder of that name has no origin
        raise UserError(f"{purpose} needs the package {package}", do="pip install -e '.[datasets]' in the checkout")
