"""`tonnage scaling`: the answer of `POST /v1/scaling/compute-optimal` on the command line, without a service."""

import argparse
import sys
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from app import catalog
from app.api.routes.scaling import ScalingRequest, resolve_scaling
from app.command_line import CommandError, first_fault, model_of, sentence_of, table_of
from app.errors import TonnageError
from app.planning.scaling import ScalingAnswer, compute_optimal
from app.planning.scaling_placement import PlacedModel

_UNITS = ("", "k", "M", "B", "T", "Q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options: the fields of the HTTP request, with dashes."""
    parser.description = (
        "Compute-optimal parameters and tokens for a budget. "
        "Options are the fields of POST /v1/scaling/compute-optimal."
    )
    parser.add_argument("--json", action="store_true", help="print the answer as the API would")
    document = ScalingRequest.model_json_schema()
    for name, field in document["properties"].items():
        meaning = " ".join(field.get("description", "").split()).replace("%", "%%")
        given: dict[str, Any] = {"dest": name, "default": None, "help": meaning, "metavar": name.upper()}
        kinds = {branch.get("type") for branch in field.get("anyOf", (field,))}
        if name == "model":
            given |= {
                "metavar": "MODEL",
                "help": f"{meaning} A config.json, a catalogue id, or a bare count such as 7e9.",
            }
        elif "number" in kinds:
            given |= {"type": float}
        elif "integer" in kinds:
            given |= {"type": _whole}
        elif "enum" in field:
            given |= {"help": f"{meaning} One of: {', '.join(field['enum'])}."}
        parser.add_argument(f"--{name.replace('_', '-')}", **given)


def run(arguments: argparse.Namespace) -> int:
    """Prints the answer. Returns 0, or 2 for input that cannot be used."""
    given = {name: value for name, value in vars(arguments).items() if name != "json" and value is not None}
    try:
        if "model" in given:
            given["model"] = model_of(given["model"])
        request = ScalingRequest.model_validate(given)
        answer = compute_optimal(resolve_scaling(request, catalog.load()))
    except (CommandError, TonnageError) as error:
        print(f"tonnage scaling: {sentence_of(error)}", file=sys.stderr)
        return 2
    except ValidationError as error:
        fault = first_fault(error, given, ScalingRequest)
        flag = (fault.pointer or "/").split("/")[1].replace("_", "-")
        print(f"tonnage scaling: --{flag} {fault.detail}", file=sys.stderr)
        return 2
    if arguments.json:
        sys.stdout.buffer.write(TypeAdapter(ScalingAnswer).dump_json(answer, indent=2) + b"\n")
    else:
        show(answer, Console())
    return 0


def show(answer: ScalingAnswer, console: Console) -> None:
    """The answer as tables that people read."""
    budget = answer.budget
    hours = "" if budget.gpu_hours is None else f" · {budget.gpu_hours:,.0f} GPU-hours"
    cost = "" if budget.cost_usd is None else f" · {budget.cost_usd:,.0f} USD"
    console.print(f"[bold]{budget.flops:.4g} FLOPs[/] · {budget.petaflop_s_days:,.4g} petaFLOP/s-days{hours}{cost}")
    table = table_of("law", "parameters", "tokens", "tokens each", "loss")
    for optimum in answer.laws:
        loss = "" if optimum.predicted_loss is None else f"{optimum.predicted_loss:.3f}"
        name = f"[bold]{optimum.law}[/]" if optimum.law == answer.law else optimum.law
        sizes = (_short(optimum.parameters), _short(optimum.tokens), f"{optimum.tokens_per_parameter:.1f}")
        table.add_row(name, *sizes, loss)
    console.print(table)
    text = answer.raw_text
    console.print(
        f"text by {answer.law}: {_short(text.curated_bytes)} bytes curated, "
        f"{_short(text.raw_bytes_low)} to {_short(text.raw_bytes_high)} raw"
    )
    if answer.data_constrained is not None:
        found = answer.data_constrained
        console.print(
            f"with {_short(found.unique_tokens)} different tokens: {_short(found.parameters)} parameters, "
            f"{found.epochs:.1f} epochs, loss {found.predicted_loss:.3f} instead of {found.loss_without_limit:.3f}"
        )
    if answer.inference_aware is not None:
        other = answer.inference_aware
        console.print(
            f"with inference: {_short(other.parameters)} parameters on {_short(other.tokens)} tokens reach the same "
            f"loss for {other.saved_flops_share:.0%} less"
        )
    if answer.model is not None:
        _show_model(answer.model, console)
    for line in answer.assumptions:
        console.print(f"[dim]assumed: {line}[/]")
    for line in answer.warnings:
        console.print(f"[yellow]warning: {line}[/]")


def _show_model(model: PlacedModel, console: Console) -> None:
    exact = "" if model.exact is None else f", {model.exact.training_flops:.4g} counted exactly"
    console.print(
        f"[bold]{model.name}[/] · {model.parameters:,} parameters · {_short(model.tokens)} tokens "
        f"({model.tokens_source}) · 6ND {model.flops_6nd:.4g} FLOPs{exact}"
    )
    table = table_of("law", "optimal tokens", "over optimal", "loss", "same loss for", "is")
    for placement in model.laws:
        loss = "" if placement.predicted_loss is None else f"{placement.predicted_loss:.3f}"
        same = placement.same_loss
        cheaper = "" if same is None else f"{same.training_flops:.3g} FLOPs"
        row = (_short(placement.optimal_tokens), f"{placement.tokens_over_optimal:.3g}×", loss, cheaper)
        table.add_row(placement.law, *row, placement.verdict)
    console.print(table)


def _short(amount: float) -> str:
    """An amount with three digits and a unit of thousands: 67.9B."""
    place = 0
    while amount >= 999.5 and place < len(_UNITS) - 1:
        amount, place = amount / 1000, place + 1
    return f"{amount:.3g}{_UNITS[place]}"


def _whole(text: str) -> int:
    number = float(text)
    if not number.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(number)
