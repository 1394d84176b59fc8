"""A file of tensors, converted as it comes in: what a format does to each of them, and to all."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.api.tensor_files import StoredTensor, read_header
from app.api.uploads import Body, Spool
from app.errors import Fault, InvalidInput, MalformedTensors
from app.precision.definition import Format
from app.precision.quantize import FEW_SCALES, Quantization, Scales, plan, takes
from app.precision.rounding import Values
from app.precision.scheme import Scheme
from app.precision.storage import stored_bytes
from app.precision.totals import ErrorSummary, ErrorTotals
from app.units import human_bytes

_PASSED_OVER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class TensorUpload:
    """A file that comes in, and where on disk and up to which size a tensor of it may wait."""

    body: Body
    spool_dir: Path | None = None
    max_spool_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What became of one tensor. A tensor that is no float is passed over, and kept as it is."""

    name: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    """Elements, scales and zero points."""
    errors: ErrorSummary | None
    """Null where the tensor was passed over."""
    scales: Scales | None


@dataclass(frozen=True, slots=True)
class FileTotals:
    """All tensors together."""

    tensors: int
    converted: int
    bytes_before: int
    bytes_after: int
    errors: ErrorSummary


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a format does to the tensors of a file."""

    to: str
    scheme: Scheme
    tensors: tuple[TensorReport, ...]
    """In the order of their bytes."""
    totals: FileTotals


@dataclass(frozen=True, slots=True)
class _Coming:
    """Elements as they come in: once, in order."""

    body: Body
    tensor: StoredTensor

    def read(self, start: int, stop: int) -> Values:
        return _decoded(self.body.read((stop - start) * self.tensor.numpy_type.itemsize), self.tensor)


@dataclass(frozen=True, slots=True)
class _Spooled:
    """Elements on disk: as often as needed, in any order."""

    spool: Spool
    tensor: StoredTensor

    def read(self, start: int, stop: int) -> Values:
        width = self.tensor.numpy_type.itemsize
        return _decoded(self.spool.read(start * width, stop * width), self.tensor)


def _decoded(data: bytes, tensor: StoredTensor) -> Values:
    with np.errstate(invalid="ignore"):
        values: Values = np.frombuffer(data, tensor.numpy_type).astype(np.float64)
    return values


def report_on(upload: TensorUpload, to: Format, scheme: Scheme) -> FileReport:
    """Read a `.safetensors` or `.npy` file to its end, and convert each tensor on the way.

    Elements are read once where the format allows it; a tensor whose scales need all of it first waits on disk.
    Raises MalformedTensors for a file that is not what it says, InvalidInput for a scheme that a tensor cannot have.
    """
    _check(to, scheme)
    body = upload.body
    tensors = read_header(body)
    _check_axis(tensors, scheme)
    plans = [_plan(tensor, to, scheme, index, upload.max_spool_bytes) for index, tensor in enumerate(tensors)]
    overall = ErrorTotals()
    spool: Spool | None = None
    reports = []
    try:
        for tensor, quantization in zip(tensors, plans, strict=True):
            if quantization is None:
                _pass_over(body, tensor)
                reports.append(_kept(tensor))
                continue
            if quantization.reads_in_order_once:
                report = quantization.run(_Coming(body, tensor))
            else:
                spool = spool or Spool(upload.spool_dir)
                spool.fill(body, tensor.bytes)
                report = quantization.run(_Spooled(spool, tensor))
            overall.merge(report.totals)
            after = stored_bytes(to, tensor.shape, _scheme_of(tensor, scheme))
            reports.append(
                TensorReport(tensor.name, tensor.dtype, tensor.shape, tensor.bytes, after, report.errors, report.scales)
            )
    finally:
        if spool is not None:
            spool.close()
    if not body.is_at_end():
        raise MalformedTensors("more bytes follow the last tensor; send the file as it is, and nothing after it")
    return FileReport(to.name, scheme, tuple(reports), _totals(reports, overall))


def _check(to: Format, scheme: Scheme) -> None:
    if to.kind == "integer" and "kind" not in scheme.model_fields_set:
        raise _wrong("kind", f"{to.name} needs a scale for each tensor: send kind symmetric or affine, or none")
    if scheme.kind != "none" and not takes(to, scheme):
        why = "brings its own scales" if to.scales else "takes a scale only as a float of 8 bits or less, scale_floats"
        raise _wrong("kind", f"{to.name} {why}; leave kind out otherwise")


def _check_axis(tensors: tuple[StoredTensor, ...], scheme: Scheme) -> None:
    floats = [tensor for tensor in tensors if tensor.numpy_type is not None]
    if floats and all(_lacks_axis(tensor, scheme) for tensor in floats):
        most = max(floats, key=lambda tensor: len(tensor.shape))
        raise _wrong(
            "channel_axis",
            f"no tensor has an axis {scheme.channel_axis}; {most.name[:200]} has {len(most.shape)} dimensions",
        )


def _lacks_axis(tensor: StoredTensor, scheme: Scheme) -> bool:
    return scheme.granularity == "channel" and scheme.channel_axis >= len(tensor.shape)


def _scheme_of(tensor: StoredTensor, scheme: Scheme) -> Scheme:
    """What becomes of a tensor without channels: it has one scale."""
    if not _lacks_axis(tensor, scheme):
        return scheme
    return scheme.model_copy(update={"granularity": "tensor", "channel_axis": 0})


def _plan(tensor: StoredTensor, to: Format, scheme: Scheme, index: int, max_spool_bytes: int) -> Quantization | None:
    if tensor.numpy_type is None:
        return None
    try:
        quantization = plan(to, _scheme_of(tensor, scheme), tensor.shape, pointer="", stream=index)
    except InvalidInput as error:
        parameter = (error.errors[0].pointer or "").strip("/")
        raise _wrong(parameter, f"{error.detail} ({tensor.name[:200]})") from None
    if not quantization.reads_in_order_once and tensor.bytes > max_spool_bytes:
        raise _wrong(
            "to",
            f"{tensor.name[:200]} has {human_bytes(tensor.bytes)}, and scales of {to.name} under this scheme are known "
            f"only once it is read: at most {human_bytes(max_spool_bytes)} are kept on disk for that "
            "(TONNAGE_MAX_SPOOL_BYTES); take a format or a granularity with scales of blocks",
        )
    return replace(quantization, scales_shown=FEW_SCALES)


def _wrong(parameter: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{parameter}: {detail}", errors=(Fault(detail=detail, parameter=parameter),))


def _pass_over(body: Body, tensor: StoredTensor) -> None:
    for start in range(0, tensor.bytes, _PASSED_OVER_BYTES):
        body.read(min(_PASSED_OVER_BYTES, tensor.bytes - start))


def _kept(tensor: StoredTensor) -> TensorReport:
    return TensorReport(tensor.name, tensor.dtype, tensor.shape, tensor.bytes, tensor.bytes, None, None)


def _totals(reports: list[TensorReport], overall: ErrorTotals) -> FileTotals:
    return FileTotals(
        tensors=len(reports),
        converted=sum(report.errors is not None for report in reports),
        bytes_before=sum(report.bytes_before for report in reports),
        bytes_after=sum(report.bytes_after for report in reports),
        errors=overall.summary(),
    )
