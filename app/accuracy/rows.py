"""Ground truth as rows: published measurements (CSV) and traced training steps (JSON), read from a folder.

Nothing is dropped in silence: a file that is neither is named in a warning, and so is a row that cannot be read.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

_ENCODING = "utf-8"

Row = TypeVar("Row")


class Unreadable(ValueError):
    """A file or row that is not ground truth, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRow:
    """One published measurement: a configuration, a metric and its value. Blank columns are "" or None; the names are
    those of the CSV header, which the README beside the files explains.
    """

    file: str
    id: str
    config_id: str
    source_family: str
    source_repo_or_paper: str
    source_path_or_url_title: str
    commit_if_known: str
    measured_metric: str
    value: float
    unit: str
    gpu_model: str
    gpu_mem_gib: float | None
    num_gpus: int | None
    model_name: str
    hidden: int | None
    layers: int | None
    heads: int | None
    kv_heads: int | None
    ffn: int | None
    vocab: int | None
    tied_embeddings: str
    params_total: str
    experts: int | None
    top_k: int | None
    seq_len: int | None
    micro_batch_size: int | None
    global_batch_size: int | None
    grad_accum: int | None
    compute_dtype: str
    param_dtype: str
    grad_dtype: str
    optimizer: str
    optimizer_dtype: str
    zero_stage_or_fsdp: str
    cpu_offload: str
    dp: int | None
    tp: int | None
    sp: str
    pp: int | None
    vpp: int | None
    cp: int | None
    ep: int | None
    recompute: str
    attention_impl: str
    peft: str
    framework: str
    notes: str


@dataclass(frozen=True, slots=True)
class TracedRow:
    """One training step traced operator by operator: the settings and the peak of what its tensors take, in bytes."""

    file: str
    id: str
    config: str
    batch: int
    seq: int
    precision: str
    gradient_checkpointing: bool
    attention: str
    optimizer: str
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What a folder holds, with one sentence for each file or row that could not be read."""

    measured: tuple[MeasuredRow, ...]
    traced: tuple[TracedRow, ...]
    warnings: tuple[str, ...]


COLUMNS = tuple(field.name for field in fields(MeasuredRow) if field.name != "file")
"""The header of a CSV file of measurements."""

_TYPES = {field.name: field.type for field in fields(MeasuredRow)}
_TRACED = tuple(field.name for field in fields(TracedRow) if field.name not in ("file", "id"))


def read(folder: Path) -> GroundTruth:
    """All ground truth under `folder`, in the order of file names. Raises Unreadable when there is none."""
    if not folder.is_dir():
        raise Unreadable(f"{folder} is not a folder")
    measured: list[MeasuredRow] = []
    traced: list[TracedRow] = []
    warnings: list[str] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if path.suffix == ".csv":
                measured += _rows(path, _measurements(path), warnings)
            elif path.suffix == ".json":
                traced += _rows(path, _steps(path), warnings)
            elif path.name.lower() != "readme.md":
                warnings.append(f"{path}: neither measurements (.csv) nor traced steps (.json); not read")
        except Unreadable as error:
            warnings.append(f"{path}: {error}; not read")
    if not measured and not traced:
        raise Unreadable(f"{folder} holds no ground truth: no CSV of measurements and no JSON of traced steps")
    return GroundTruth(tuple(measured), tuple(traced), tuple(warnings))


def _rows(path: Path, attempts: Iterator[Row | Unreadable], warnings: list[str]) -> list[Row]:
    found = []
    for attempt in attempts:
        if isinstance(attempt, Unreadable):
            warnings.append(f"{path}: {attempt}; row not read")
        else:
            found.append(attempt)
    return found


def _measurements(path: Path) -> Iterator[MeasuredRow | Unreadable]:
    with path.open(encoding=_ENCODING, newline="") as file:
        try:
            lines = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (lines.fieldnames or ())]
            if missing:
                raise Unreadable(f"not a file of measurements: its header lacks {', '.join(missing[:5])}")
            for line in lines:
                try:
                    yield _measurement(path.name, line)
                except Unreadable as error:
                    yield Unreadable(f"line {lines.line_num}: {error}")
        except (UnicodeDecodeError, csv.Error) as error:
            raise Unreadable(f"not a CSV file in UTF-8: {error}") from error


def _measurement(file: str, line: Mapping[str, str | None]) -> MeasuredRow:
    if None in line.values() or None in line:
        raise Unreadable("the row has more or fewer cells than the header")
    values = {name: _typed(name, (line[name] or "").strip()) for name in COLUMNS}
    for name in ("id", "config_id", "measured_metric", "value"):
        if values[name] in ("", None):
            raise Unreadable(f"{name} is missing")
    return MeasuredRow(file=file, **values)


def _typed(name: str, text: str) -> Any:
    kind = _TYPES[name]
    if kind is str:
        return text
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        raise Unreadable(f"{name} is {text!r}, not a number") from None
    if kind in (float, float | None):
        return number
    if number != int(number):
        raise Unreadable(f"{name} is {text}, not a whole number")
    return int(number)


def _steps(path: Path) -> Iterator[TracedRow | Unreadable]:
    try:
        content = json.loads(path.read_text(encoding=_ENCODING))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Unreadable(f"not a JSON file in UTF-8: {error}") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise Unreadable("not a list of traced steps")
    for number, entry in enumerate(content, start=1):
        missing = [name for name in _TRACED if name not in entry]
        if missing:
            yield Unreadable(f"entry {number}: {', '.join(missing[:5])} is missing")
        else:
            yield TracedRow(path.name, _name_of(entry), **{name: entry[name] for name in _TRACED})


def _name_of(entry: Mapping[str, Any]) -> str:
    parts = [entry["config"].removesuffix(".json"), f"{entry['batch']}x{entry['seq']}", entry["precision"]]
    parts += ["checkpointing"] if entry["gradient_checkpointing"] else []
    return " ".join([*parts, entry["attention"], entry["optimizer"]])
