"""`/v1/precision`: number formats, and what they do to values."""

from typing import Annotated, Literal

from fastapi import Body, Path, Query

from app.api import examples
from app.api.answers import shown_with
from app.api.auth import Viewer
from app.api.deps import CatalogDep
from app.api.paging import Page, PageQuery, page_of
from app.api.precision_requests import ConvertRequest
from app.api.precision_views import FormatView, view_of
from app.api.problems import raises
from app.api.routing import v1_router
from app.errors import NotFound
from app.precision.convert import Conversion, convert
from app.precision.formats import NUMBER_FORMATS, format_at_path, format_named

router = v1_router("precision", numbers_as_written=True)


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
