"""What commands that answer as the API does share: a model as a person types it, faults in a sentence, tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from rich.table import Table

from app.api.faults import faults_of
from app.errors import Fault, TonnageError


class CommandError(Exception):
    """Something the person at the keyboard can put right, in one sentence."""


def model_of(text: str) -> dict[str, Any]:
    """The request's `model` for what was typed: a config file, a catalogue id or a count. Raises CommandError."""
    path = Path(text)
    if path.suffix == ".json" or path.is_file():
        return {"config": _config(path)}
    try:
        count = float(text)
    except ValueError:
        return {"id": text}
    if not count.is_integer():
        raise CommandError(f"{text} is not a whole number of parameters")
    return {"parameters": int(count)}


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} is not valid JSON") from error
    if not isinstance(config, dict):
        raise CommandError(f"{path} holds no JSON object")
    return config


def sentence_of(error: Exception) -> str:
    """What to say of an error that the person at the keyboard can put right."""
    return error.detail if isinstance(error, TonnageError) else str(error)


def first_fault(error: ValidationError, body: Mapping[str, Any], request: type[BaseModel]) -> Fault:
    """What is wrong first in the body of a request of this type."""
    schema = request.model_json_schema()
    entries = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors()]
    return faults_of(RequestValidationError(entries, body=body), schema, schema["$defs"])[0]


def table_of(first: str, *numbers: str) -> Table:
    """An empty table without lines: the column `first`, and columns of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
