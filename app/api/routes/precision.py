"""`/v1/precision`: number formats, and what they do to values."""

from typing import Annotated, Literal

import numpy as np
import safetensors.numpy
from fastapi import Body, Path, Query
from pydantic import TypeAdapter

from app.api import examples
from app.api.answers import documented, shown_with
from app.api.auth import Viewer
from app.api.deps import CatalogDep, HubDep, TensorUploadDep
from app.api.paging import Page, PageQuery, page_of
from app.api.precision_requests import ConvertRequest, ModelConversionRequest, TensorsQuery
from app.api.precision_views import FormatView, view_of
from app.api.problems import raises
from app.api.requests import find_in_hub, resolve_model
from app.api.routing import v1_router
from app.api.tensor_reports import FileReport, TensorUpload, report_on
from app.api.uploads import OCTETS, Whole
from app.errors import MalformedTensors, NotFound
from app.planning.footprint import ModelConversion, convert_model
from app.precision.convert import Conversion, convert
from app.precision.formats import NUMBER_FORMATS, format_at_path, format_in_query, format_named
from app.precision.scheme import Scheme

TENSORS_PATH = "/v1/precision/tensors"

router = v1_router("precision", numbers_as_written=True)


def _shown_report() -> object:
    """What a small file becomes in MXFP4, for the documents."""
    weight = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    report = report_on(
        TensorUpload(Whole(safetensors.numpy.save({"weight": weight}))), NUMBER_FORMATS["mxfp4"], Scheme()
    )
    return TypeAdapter(FileReport).dump_python(report, mode="json")


class FormatQuery(PageQuery):
    """Filters of the list of formats."""

    kind: Literal["float", "integer", "block"] | None = None
    """Floats, integers, or elements in blocks that share scales."""

    compute_capability: Annotated[str, Query(pattern=r"^\d{1,2}\.\d$")] | None = None
    """Only what GPUs of NVIDIA's with this compute capability, such as `9.0`, compute in."""


@router.get("/precision/formats", summary="List the number formats", operation_id="listFormats")
@shown_with(query=FormatQuery(limit=1))
def list_formats(query: Annotated[FormatQuery, Query()], catalog: CatalogDep, _: Viewer) -> Page[FormatView]:  # noqa: ARG001 - every example is made with the catalogue
    """Formats by name: fields and bias, limits, special values, bytes a parameter with its scales, GPU generations that
    compute in them and since when, what training uses them for, and where each fact comes from.
    """
    version = query.compute_capability
    found = [
        (name, view_of(format))
        for name, format in sorted(NUMBER_FORMATS.items())
        if query.kind in (None, format.kind)
        and (version is None or any(units.cover(version) for units in format.native))
    ]
    return page_of(found, query, "formats")


@router.get(
    "/precision/formats/{name}",
    summary="Read one number format",
    operation_id="getFormat",
    responses=raises(NotFound),
)
@shown_with(name="mxfp4")
def get_format(
    name: Annotated[str, Path(description="Name of the format.", examples=["mxfp4"])],
    catalog: CatalogDep,  # noqa: ARG001 - every example is made with the catalogue
    _: Viewer,
) -> FormatView:
    """A number format by its name."""
    return view_of(format_at_path(name))


@router.post("/precision/convert", summary="Convert numbers between formats", operation_id="convertNumbers")
@shown_with(request=ConvertRequest.model_validate(examples.CONVERT["pi"]["value"]))
def convert_numbers(
    request: Annotated[ConvertRequest, Body(openapi_examples=examples.CONVERT)],
    catalog: CatalogDep,  # noqa: ARG001 - every example is made with the catalogue
    _: Viewer,
) -> Conversion:
    """Numbers, exactly as written, in the format they come `from`, and from there in each format of `to`: bit by bit,
    rounded to the nearest with ties to even, and with what was lost.

    A JSON number is read as the decimal number it is, not as a float64; as a text, a number may also be hexadecimal
    (`"0x1.8p3"`), `"NaN"`, `"Infinity"` or `"-Infinity"`, and answers spell these three the same way. `source` is the
    number in the format it comes from; errors are told against that. What overflows becomes infinity, or NaN where the
    format has no infinity, or the largest number where it has neither or `scheme.saturate` is set. Integers and block
    formats always saturate.
    """
    targets = [format_named(name, pointer=f"/to/{index}") for index, name in enumerate(request.to)]
    source = format_named(request.source, pointer="/from")
    return convert(request.values, source, targets, request.scheme)


@router.post(
    "/precision/tensors",
    summary="Convert a file of tensors as it comes in",
    operation_id="convertTensors",
    responses={200: documented(_shown_report(), "What became of each tensor, and of all"), **raises(MalformedTensors)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A `.safetensors` or `.npy` file of any size, as it is.",
            "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
def convert_tensors(
    query: Annotated[TensorsQuery, Query()],
    upload: TensorUploadDep,
    _: Viewer,
) -> FileReport:
    """What a format does to each tensor of a file: errors, signal to noise, saturated share, scales, bytes. The file is
    read as it comes in and never held as a whole; send it with `Content-Type: application/octet-stream`, as
    `curl -X POST -T model.safetensors -H 'Content-Type: application/octet-stream'` does.

    Formats with scales of blocks are worked out on the way. Where a scale needs the whole tensor (`granularity`
    `tensor`, other `channel_axis` than 0, `nvfp4`, `nf4-double`), the tensor waits on the service's disk. Integers need
    a `kind`. Tensors that are no floats are passed over.
    """
    return report_on(upload, format_in_query(query.to), query.scheme())


@router.post("/precision/model-conversions", summary="Bring a model into another format", operation_id="convertModel")
@shown_with(
    request=ModelConversionRequest.model_validate(examples.MODEL_CONVERSIONS["blocks"]["value"]),
    hub=None,
)
def convert_a_model(
    request: Annotated[ModelConversionRequest, Body(openapi_examples=examples.MODEL_CONVERSIONS)],
    catalog: CatalogDep,
    hub: HubDep,
    _: Viewer,
) -> ModelConversion:
    """Bytes before and after by component, to the byte, scales of blocks and tiles included: in a file, for inference,
    and for training with gradients and optimizer states; which GPUs of the catalogue compute in the format; and what
    is at risk, why, and what is done about it.
    """
    source = format_named(request.source, pointer="/from")
    to = format_named(request.to, pointer="/to")
    architecture = resolve_model(request.model, catalog, find_in_hub(request.model, catalog, hub))
    return convert_model(architecture, source, to, catalog.gpus.values(), keep=request.keep, scheme=request.scheme)
