"""What the operations of `/v1/precision` are asked."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, PlainValidator, StrictStr, WithJsonSchema

from app.api.requests import ModelRequest
from app.planning.specs import Spec
from app.precision.convert import MAX_VALUES
from app.precision.numerals import MAX_LENGTH
from app.precision.scheme import Scheme, ShapedScheme


def _numeral(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        what = 'should be a number, or a text such as "0.1", "0x1.8p3", "NaN" or "-Infinity"'
        raise ValueError(what)  # noqa: TRY004 - what pydantic tells a caller
    return value


Value = Annotated[
    Any,
    PlainValidator(_numeral),
    WithJsonSchema(
        {
            "anyOf": [{"type": "number"}, {"type": "string", "maxLength": MAX_LENGTH}],
            "description": "A number; or a text that says one.",
        }
    ),
]
FormatName = Annotated[StrictStr, Field(min_length=1, max_length=100)]


class ConvertRequest(Spec):
    """Numbers to convert."""

    values: Annotated[list[Value], Field(min_length=1, max_length=MAX_VALUES)]
    """The numbers: JSON numbers, or texts for what JSON cannot say."""
    source: Annotated[FormatName, Field(alias="from")]
    """Format that the numbers are in: each is first rounded to it, once; to the nearest, and by its own rule where it
    overflows, whatever the scheme says. A float or an integer without scales.
    """
    to: Annotated[list[FormatName], Field(min_length=1, max_length=30)]
    """Formats to convert to (`GET /v1/precision/formats`)."""
    scheme: ShapedScheme = ShapedScheme()
    """How integers get their scales, and how all formats round and saturate. Default: scale 1, to the nearest."""


class ModelConversionRequest(Spec):
    """A model to bring from one format into another."""

    model: ModelRequest
    source: Annotated[FormatName, Field(alias="from")]
    """Format that its weights are in."""
    to: FormatName
    """Format to bring them into (`GET /v1/precision/formats`)."""
    keep: Annotated[list[Annotated[StrictStr, Field(max_length=100)]], Field(max_length=50)] | None = None
    """Components that stay in the format they are in, by the names that `/v1/models/inspect` gives; an empty list for
    none. Default, for formats of 8 bits or less: norms, routers, embeddings and the head, where vectors always stay;
    between wider formats, none.
    """
    scheme: Scheme | None = None
    """Where integers and FP8 get their scales. Default: integers of 8 bits by output channel, of 4 bits in blocks of
    128, FP8 by tensor.
    """


class TensorsQuery(Scheme):
    """How a file of tensors is converted: a format, and a scheme as in `/v1/precision/convert`."""

    model_config = ConfigDict(strict=False)

    to: Annotated[str, Field(min_length=1, max_length=100)]
    """Format to convert to (`GET /v1/precision/formats`)."""

    def scheme(self) -> Scheme:
        """The scheme alone."""
        return Scheme.model_validate(self.model_dump(exclude={"to"}, exclude_unset=True))
