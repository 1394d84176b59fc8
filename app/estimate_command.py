"""`tonnage estimate`: the answer of `POST /v1/estimates/memory` on the command line, without service or database.

The options are made from the fields of the request, so that none is missing and none is described twice.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from app import catalog
from app.api.requests import MemoryRequest, resolve_memory
from app.command_line import CommandError, first_fault, model_of, sentence_of, table_of
from app.errors import TonnageError
from app.planning import memory
from app.planning.memory import MemoryEstimate
from app.units import human_bytes

_SECTIONS = ("training", "parallelism", "hardware")
_FLAGS = {"/training/lora/rank": "--lora-rank", "/training/lora/target_modules": "--lora-target-modules"}
"""Options that are not called like their field alone."""


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of the request that has an option."""

    pointer: str
    schema: Mapping[str, Any]

    @property
    def flag(self) -> str:
        return _FLAGS.get(self.pointer, "--" + self.pointer.rpartition("/")[2].replace("_", "-"))

    @property
    def branches(self) -> tuple[Mapping[str, Any], ...]:
        return tuple(self.schema.get("anyOf", (self.schema,)))

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it knows, where it knows words."""
        known = (word for branch in self.branches for word in branch.get("enum", [branch.get("const")]))
        return tuple(word for word in known if word is not None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options: the fields of the HTTP request, with dashes."""
    parser.description = (
        "Estimate what each GPU of a training job holds. Options are the fields of POST /v1/estimates/memory."
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a config.json, a catalogue id, or a bare parameter count such as 7e9"
    )
    parser.add_argument("--json", action="store_true", help="print the answer as the API would")
    groups = {name: parser.add_argument_group(name) for name in _SECTIONS}
    for field in _fields(MemoryRequest.model_json_schema()):
        _add(groups.get(field.pointer.split("/")[1], parser), field)


def run(arguments: argparse.Namespace) -> int:
    """Prints the estimate. Returns 0 when it fits or no GPU was given, 1 when it does not fit, 2 for input that cannot
    be used.
    """
    body: dict[str, Any] = {}
    try:
        body = _body(arguments)
        request = MemoryRequest.model_validate(body)
        estimate = memory.estimate(resolve_memory(request, catalog.load()))
    except (CommandError, TonnageError) as error:
        print(f"tonnage estimate: {sentence_of(error)}", file=sys.stderr)
        return 2
    except ValidationError as error:
        flags = {field.pointer: field.flag for field in _fields(MemoryRequest.model_json_schema())}
        fault = first_fault(error, body, MemoryRequest)
        print(f"tonnage estimate: {flags.get(fault.pointer or '', fault.pointer)} {fault.detail}", file=sys.stderr)
        return 2
    if arguments.json:
        sys.stdout.buffer.write(TypeAdapter(MemoryEstimate).dump_json(estimate, indent=2) + b"\n")
    else:
        show(estimate, Console())
    return 1 if estimate.fits is False else 0


def show(estimate: MemoryEstimate, console: Console) -> None:
    """The estimate as a table that people read."""
    model = estimate.model
    trained = f", {model.trainable_parameters:,} trained" if model.trainable_parameters != model.parameters else ""
    console.print(f"[bold]{model.name}[/] · {model.architecture} · {model.parameters:,} parameters{trained}")
    table = table_of("part", "bytes")
    table.add_column("formula", overflow="fold")
    for component in estimate.components:
        table.add_row(component.name, human_bytes(component.bytes), component.formula)
    console.print(table)
    _show_peaks(estimate, console)
    if estimate.gpu is not None and estimate.headroom_bytes is not None:
        verdict = "[green]fits[/]" if estimate.fits else "[red]does not fit[/]"
        room = "to spare" if estimate.fits else "missing"
        console.print(
            f"{estimate.gpu.key} has {human_bytes(estimate.gpu.usable_bytes)}: {verdict}, "
            f"{human_bytes(abs(estimate.headroom_bytes))} {room}"
        )
    for line in estimate.assumptions:
        console.print(f"[dim]assumed: {line}[/]")
    for line in estimate.warnings:
        console.print(f"[yellow]warning: {line}[/]")


def _show_peaks(estimate: MemoryEstimate, console: Console) -> None:
    """The heaviest GPU's peak by each counter, then every pipeline stage's."""
    stages = estimate.pipeline_stages
    heaviest = max(stages, key=lambda stage: stage.total_bytes)
    lines = [("upper bound", estimate.per_gpu.upper_bound_bytes, "")]
    if estimate.estimator == "detailed":
        of_stage = f" of stage {heaviest.stage}" if len(stages) > 1 else ""
        lines = [
            ("expected per GPU", heaviest.total_bytes, f"nvidia-smi{of_stage}"),
            ("  reserved", heaviest.reserved_bytes, "torch.cuda.max_memory_reserved"),
            ("  allocated", heaviest.allocated_bytes, "torch.cuda.max_memory_allocated"),
            ("  between steps", heaviest.between_steps_bytes, "torch.cuda.memory_allocated"),
            *lines,
        ]
    else:
        lines = [("expected per GPU", heaviest.total_bytes, ""), *lines]
    if estimate.host.per_rank_bytes:
        lines.append(("host memory", estimate.host.per_rank_bytes, "per rank"))
    if estimate.host.per_node_bytes:
        lines.append(("", estimate.host.per_node_bytes, "per node"))
    for name, amount, counter in lines:
        console.print(f"{name:18} {human_bytes(amount):>10}  {counter}".rstrip())
    if len(stages) > 1:
        table = table_of("stage", "expected", "reserved", "allocated", "between steps")
        for stage in stages:
            amounts = (stage.total_bytes, stage.reserved_bytes, stage.allocated_bytes, stage.between_steps_bytes)
            table.add_row(str(stage.stage), *map(human_bytes, amounts))
        console.print(table)


def _fields(document: Mapping[str, Any], schema: Mapping[str, Any] | None = None, place: str = "") -> Iterator[_Field]:
    """Every field of the request beside the model, from its JSON schema."""
    for name, field in (schema or document)["properties"].items():
        pointer = f"{place}/{name}"
        if pointer == "/model":
            continue
        branches = [branch for branch in field.get("anyOf", (field,)) if branch.get("type") != "null"]
        if all("$ref" in branch for branch in branches):
            yield from _fields(document, document["$defs"][branches[0]["$ref"].rpartition("/")[2]], pointer)
        else:
            yield _Field(pointer, field)


def _add(group: argparse._ActionsContainer, field: _Field) -> None:
    """The option of one field."""
    meaning = " ".join(field.schema.get("description", "").split())
    if field.words:
        meaning = f"{meaning} One of: {', '.join(field.words)}."
    if any("$ref" in branch for branch in field.branches):
        meaning = f"{meaning} Or a JSON object."
    given: dict[str, Any] = {"dest": field.pointer, "default": None, "help": meaning.replace("%", "%%")}
    types = {branch.get("type") for branch in field.branches}
    if types == {"boolean", "null"}:
        given["action"] = argparse.BooleanOptionalAction  # leaving it out is a third answer
    elif "boolean" in types:
        given["action"] = "store_true"
    elif "integer" in types:
        given |= {"type": int, "metavar": "N"}
    else:
        metavar = "A,B,…" if "array" in types else field.pointer.rpartition("/")[2].upper()
        given |= {"type": lambda text: _value(field, text), "metavar": metavar}
    group.add_argument(field.flag, **given)


def _value(field: _Field, text: str) -> Any:
    """What an option's text means: a word, a list with commas between, or a JSON object where the field takes one."""
    if text in field.words:
        return text
    if any("$ref" in branch for branch in field.branches) and text.startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text} is not valid JSON") from error
    for branch in field.branches:
        if branch.get("type") == "array":
            parts = text.split(",")
            if branch["items"].get("type") != "integer":
                return parts
            if not all(part.isdecimal() for part in parts):
                raise argparse.ArgumentTypeError(f"{text} is no list of whole numbers, such as 8,8,8,8")
            return [int(part) for part in parts]
    return text


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model_of(arguments.model)}
    for pointer, value in vars(arguments).items():
        if pointer.startswith("/") and value is not None:
            *path, name = pointer.split("/")[1:]
            inside = body
            for part in path:
                inside = inside.setdefault(part, {})
            inside[name] = value
    if "hardware" in body and "gpu" not in body["hardware"]:
        raise CommandError("--gpus-per-node and --nodes need --gpu")
    return body
