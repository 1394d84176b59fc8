"""`tonnage estimate`: the answer of `POST /v1/estimates/memory` on the command line, without service or database."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from app import catalog
from app.api.requests import MemoryRequest, resolve_memory
from app.errors import TonnageError
from app.planning import memory
from app.planning.memory import MemoryEstimate
from app.units import human_bytes

_TRAINING = ("precision", "optimizer", "optimizer_implementation", "recompute", "attention", "framework")
_TRAINING_COUNTS = (
    "micro_batch_size",
    "global_batch_size",
    "gradient_accumulation_steps",
    "sequence_length",
    "target_sequence_length",
)
_PARALLELISM_COUNTS = (
    "data_parallel_size",
    "zero_stage",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "context_parallel_size",
    "expert_parallel_size",
)


class CommandError(Exception):
    """Something the person at the keyboard can put right, in one sentence."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options: the fields of the HTTP request, with dashes."""
    parser.description = (
        "Estimate what each GPU of a training job holds. Options are the fields of POST /v1/estimates/memory."
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a config.json, a catalogue id, or a bare parameter count such as 7e9"
    )
    parser.add_argument("--gpu", help="catalogue key of the GPU, such as h100-sxm-80gb")
    parser.add_argument("--gpus-per-node", type=int)
    parser.add_argument("--nodes", type=int)
    for name in _TRAINING:
        parser.add_argument(_option(name))
    for name in (*_TRAINING_COUNTS, *_PARALLELISM_COUNTS):
        parser.add_argument(_option(name), type=int)
    parser.add_argument("--fused-cross-entropy", action="store_true", default=None)
    parser.add_argument("--sequence-parallel", action="store_true", default=None)
    parser.add_argument("--estimator", choices=("detailed", "rule_of_thumb"), default="detailed")
    parser.add_argument("--json", action="store_true", help="print the answer as the API would")


def run(arguments: argparse.Namespace) -> int:
    """Prints the estimate. Returns 0 when it fits or no GPU was given, 1 when it does not fit, 2 for input that cannot
    be used.
    """
    try:
        request = MemoryRequest.model_validate(_body(arguments))
        estimate = memory.estimate(resolve_memory(request, catalog.load()))
    except (CommandError, TonnageError) as error:
        print(f"tonnage estimate: {_sentence(error)}", file=sys.stderr)
        return 2
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("literal", "Precision")))
        print(f"tonnage estimate: {place}: {first['msg']}", file=sys.stderr)
        return 2
    if arguments.json:
        sys.stdout.buffer.write(TypeAdapter(MemoryEstimate).dump_json(estimate, indent=2) + b"\n")
    else:
        show(estimate, Console())
    return 1 if estimate.fits is False else 0


def show(estimate: MemoryEstimate, console: Console) -> None:
    """The estimate as a table that people read."""
    console.print(
        f"[bold]{estimate.model.name}[/] · {estimate.model.architecture} · {estimate.model.parameters:,} parameters"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("part")
    table.add_column("bytes", justify="right")
    table.add_column("formula", overflow="fold")
    for component in estimate.components:
        table.add_row(component.name, human_bytes(component.bytes), component.formula)
    console.print(table)
    per_gpu = estimate.per_gpu
    console.print(f"expected per GPU   {human_bytes(per_gpu.total_bytes)}")
    console.print(f"upper bound        {human_bytes(per_gpu.upper_bound_bytes)}")
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


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    body: dict[str, Any] = {"model": _model(arguments.model), "estimator": arguments.estimator}
    body["training"] = {
        name: given[name] for name in (*_TRAINING, *_TRAINING_COUNTS, "fused_cross_entropy") if name in given
    }
    body["parallelism"] = {name: given[name] for name in (*_PARALLELISM_COUNTS, "sequence_parallel") if name in given}
    hardware = {name: given[name] for name in ("gpu", "gpus_per_node", "nodes") if name in given}
    if hardware:
        if "gpu" not in hardware:
            raise CommandError("--gpus-per-node and --nodes need --gpu")
        body["hardware"] = hardware
    return body


def _model(text: str) -> dict[str, Any]:
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


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _sentence(error: Exception) -> str:
    return error.detail if isinstance(error, TonnageError) else str(error)
