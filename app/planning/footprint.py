"""A model from one number format to another: bytes by component, for storage, inference and training; who computes in
it, and what is at risk.

Formats of 8 bits or less are for matrices. Vectors stay as they are, and so do the parts that quantization tools leave:
norms, routers, embeddings and the head, unless a request names what to keep. Between wider formats all is converted but
what a request names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from app.errors import InvalidInput, UnknownName
from app.planning.architecture import Architecture
from app.planning.conversion_risks import Risk, risks_of
from app.planning.ledger import Component, Operation, Weight
from app.planning.specs import Gpu
from app.planning.trained_in import TrainingBytes, training_bytes
from app.precision.definition import Format
from app.precision.formats import NUMBER_FORMATS
from app.precision.hardware import NativeUnits
from app.precision.quantize import takes
from app.precision.scheme import Scheme
from app.precision.storage import packed_bytes, stored_bytes

KEPT_BY_DEFAULT: tuple[Component, ...] = (
    "word_embedding",
    "position_embedding",
    "type_embedding",
    "relative_position",
    "norm",
    "router",
    "lm_head",
    "head_other",
)

_OF_TENSORS = Scheme(kind="symmetric", granularity="tensor", scale_floats=True)
_SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        **dict.fromkeys(("fp8_e4m3", "fp8_e5m2", "fp8_e4m3fnuz", "fp8_e5m2fnuz"), _OF_TENSORS),
        "int8": Scheme(kind="symmetric", granularity="channel"),
        "uint8": Scheme(kind="affine", granularity="channel"),
        "int4": Scheme(kind="symmetric", granularity="block", block_size=128),
        "uint4": Scheme(kind="affine", granularity="block", block_size=128),
    }
)
"""Where integers and FP8 get their scales from, unless a request says so."""

_NARROW_BITS = 8


@dataclass(frozen=True, slots=True)
class ConvertedComponent:
    """A component before and after. What is not `converted_parameters` stays in the format that it is in."""

    name: Component
    parameters: int
    converted_parameters: int
    bytes_before: int
    bytes_after: int
    scale_bytes: int
    """Part of `bytes_after`: scales and zero points."""
    kept: str | None
    """Why parameters stay; null where all are converted."""


@dataclass(frozen=True, slots=True)
class StorageBytes:
    """The weights in a file. `bits_per_parameter` is of all parameters, scales included."""

    bytes_before: int
    bytes_after: int
    scale_bytes: int
    bits_per_parameter: float


@dataclass(frozen=True, slots=True)
class InferenceBytes:
    """The weights on GPUs. Where no GPU computes in the format, the largest matrix is made wide at a time."""

    bytes_before: int
    bytes_after: int
    widened_matrix_bytes: int
    """Part of `bytes_after`."""


@dataclass(frozen=True, slots=True)
class NativeGpus:
    """The catalogue's GPUs with units for the target format, and the generations that have them."""

    gpus: tuple[str, ...]
    units: tuple[NativeUnits, ...]


@dataclass(frozen=True, slots=True)
class ModelConversion:
    """A model in two formats."""

    model: str
    parameters: int
    source: str
    to: str
    components: tuple[ConvertedComponent, ...]
    storage: StorageBytes
    inference: InferenceBytes
    training: TrainingBytes
    native: NativeGpus
    risks: tuple[Risk, ...]
    assumptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Tensors of one shape: `count` of them."""

    component: Component
    shape: tuple[int, ...]
    count: int

    @property
    def parameters(self) -> int:
        size = self.count
        for side in self.shape:
            size *= side
        return size


def convert_model(
    architecture: Architecture,
    source: Format,
    to: Format,
    gpus: Iterable[Gpu],
    *,
    keep: Sequence[str] | None = None,
    scheme: Scheme | None = None,
) -> ModelConversion:
    """The model before and after.

    `keep` are the components that stay; `scheme` gives integers and FP8 their scales. Raises UnknownName for a part
    that the model has not, InvalidInput for a conversion of a format to itself, or a scheme that `to` does not take.
    """
    if source.name == to.name:
        raise InvalidInput.at("/to", f"the model is in {to.name} already; name another format")
    _check_scheme(to, scheme)
    way = _Way(source, to, _kept(architecture, keep, is_default_to_keep=is_narrow(source) or is_narrow(to)), scheme)
    tensors = _tensors(architecture)
    components = tuple(
        _component(name, [each for each in tensors if each.component == name], way)
        for name in dict.fromkeys(each.component for each in tensors)
    )
    before = sum(component.bytes_before for component in components)
    after = sum(component.bytes_after for component in components)
    widened = _widened(tensors, way)
    found = tuple(key for gpu in gpus for key in [gpu.key] if _computes(gpu, to))
    return ModelConversion(
        model=architecture.name,
        parameters=architecture.parameters,
        source=source.name,
        to=to.name,
        components=components,
        storage=StorageBytes(
            before, after, sum(part.scale_bytes for part in components), 8 * after / max(architecture.parameters, 1)
        ),
        inference=InferenceBytes(before, after + widened, widened),
        training=training_bytes(architecture, source, to),
        native=NativeGpus(found, to.native),
        risks=risks_of(source, to),
        assumptions=(*_assumptions(way), *architecture.assumptions),
    )


def is_narrow(format: Format) -> bool:
    """Whether only matrices are brought into this format: 8 bits or less."""
    return format.storage_bits <= _NARROW_BITS


def _check_scheme(to: Format, scheme: Scheme | None) -> None:
    if scheme is None or takes(to, scheme):
        return
    if scheme.kind == "none" and to.name in _SCHEMES:
        raise InvalidInput.at(
            "/scheme/kind", f"weights in {to.name} have scales: send kind symmetric or affine, or leave scheme out"
        )
    raise InvalidInput.at(
        "/scheme",
        f"{to.name} takes no {'' if scheme.kind == 'none' else f'{scheme.kind} '}scheme; leave it out, or name an "
        "integer format in `to`, or a float of 8 bits or less with scale_floats",
    )


def _kept(architecture: Architecture, keep: Sequence[str] | None, *, is_default_to_keep: bool) -> tuple[str, ...]:
    names = [count.name for count in architecture.components]
    if keep is None:
        return tuple(name for name in KEPT_BY_DEFAULT if name in names) if is_default_to_keep else ()
    for index, name in enumerate(keep):
        if name not in names:
            raise UnknownName.among(
                "component", name, list(names), pointer=f"/keep/{index}", see=f"those of the model: {', '.join(names)}"
            )
    return tuple(keep)


def _tensors(architecture: Architecture) -> list[_Tensors]:
    """Every parameter tensor; a stack of experts as its matrices."""
    sizes = architecture.sizes
    return [
        _Tensors(weight.component, shape, segment.repeats.evaluate(sizes) * copies)
        for segment in architecture.ledger()
        for operation in segment.operations
        for weight in operation.weights
        for shape, copies in [_shape(weight, operation, sizes)]
    ]


def _shape(weight: Weight, operation: Operation, sizes: Mapping[str, int]) -> tuple[tuple[int, ...], int]:
    """Output × input features of a matrix, in which blocks lie along the input; how many are stacked in one tensor."""
    elements, copies = int(weight.elements.evaluate(sizes)), int(weight.copies.evaluate(sizes))
    if weight.rows is None or weight.columns is None:
        return (elements,), 1
    rows, columns = int(weight.rows.evaluate(sizes)), int(weight.columns.evaluate(sizes))
    linear = operation.linear
    if linear is not None:
        outputs, inputs = int(linear.outputs.evaluate(sizes)), int(linear.inputs.evaluate(sizes))
        if outputs * inputs == rows * columns:
            rows, columns = outputs, inputs
    if rows * columns * copies != elements:
        return (elements,), 1
    return (rows, columns), copies


@dataclass(frozen=True, slots=True)
class _Way:
    """From one format to another, and which components do not go."""

    source: Format
    to: Format
    stays: tuple[str, ...]
    scheme: Scheme | None

    @property
    def wide(self) -> Format:
        """What stays is in this format where the others are in a narrow one."""
        return next((format for format in (self.source, self.to) if not is_narrow(format)), NUMBER_FORMATS["bf16"])

    def before(self, tensors: _Tensors) -> Format:
        """The format that tensors are in."""
        return self.wide if is_narrow(self.source) and self._is_left_wide(tensors) else self.source

    def after(self, tensors: _Tensors) -> Format:
        """The format that they are brought into."""
        if tensors.component in self.stays:
            return self.before(tensors)
        return self.wide if is_narrow(self.to) and self._is_left_wide(tensors) else self.to

    def _is_left_wide(self, tensors: _Tensors) -> bool:
        return len(tensors.shape) < 2 or tensors.component in self.stays

    def bytes_before(self, tensors: _Tensors) -> int:
        """Elements and scales as they are."""
        format = self.before(tensors)
        return tensors.count * stored_bytes(format, tensors.shape, _SCHEMES.get(format.name))

    def bytes_after(self, tensors: _Tensors) -> int:
        """Elements and scales as they will be."""
        format = self.after(tensors)
        return tensors.count * stored_bytes(format, tensors.shape, self.scheme or _SCHEMES.get(format.name))


def _component(name: Component, tensors: list[_Tensors], way: _Way) -> ConvertedComponent:
    parameters = sum(each.parameters for each in tensors)
    moved = sum(each.parameters for each in tensors if way.after(each) is not way.before(each))
    after = sum(way.bytes_after(each) for each in tensors)
    codes = sum(each.count * packed_bytes(way.after(each), each.shape) for each in tensors)
    kept = None
    if moved < parameters:
        kept = (
            "kept, as asked or by default"
            if name in way.stays
            else "vectors stay, and parts that are counted as a whole"
        )
    return ConvertedComponent(
        name, parameters, moved, sum(way.bytes_before(each) for each in tensors), after, after - codes, kept
    )


def _widened(tensors: list[_Tensors], way: _Way) -> int:
    if way.to.native or not is_narrow(way.to):
        return 0
    return max((stored_bytes(way.wide, each.shape) for each in tensors if way.after(each) is way.to), default=0)


def _computes(gpu: Gpu, format: Format) -> bool:
    return any(units.cover(gpu.compute_capability) for units in format.native)


def _assumptions(way: _Way) -> list[str]:
    lines = []
    names = ", ".join(way.stays)
    if is_narrow(way.source) or is_narrow(way.to):
        lines.append(f"vectors{f' and {names}' if names else ''} stay in {way.wide.name}")
        lines.append("blocks lie along the input features of a matrix; experts are matrices of their own")
    elif names:
        lines.append(f"{names} stay in {way.source.name}")
    by_default = (way.source, way.to) if way.scheme is None else (way.source,)
    schemes = [(format.name, _SCHEMES[format.name]) for format in by_default if format.name in _SCHEMES]
    lines += [f"{name}: {own.kind}, with FP32 scales of {_sharing(own)}" for name, own in schemes]
    return lines


def _sharing(scheme: Scheme) -> str:
    of = {"tensor": "tensors", "channel": "output channels", "block": f"blocks of {scheme.block_size}"}
    return of[scheme.granularity]
