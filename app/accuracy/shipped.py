"""The table that ships with this version: `make accuracy` writes it, `GET /v1/accuracy` serves it."""

from functools import cache
from importlib.resources import files

from pydantic import TypeAdapter

from app.accuracy.table import Accuracy


@cache
def load() -> Accuracy:
    """The table of this version. Raises ValidationError when the file is not one, and nothing starts."""
    text = (files("app.accuracy") / "accuracy.json").read_text(encoding="utf-8")
    return TypeAdapter(Accuracy).validate_json(text)
