"""What the driver counts beside the allocator, by card."""

import pytest

from app import catalog
from app.planning.memory import MemoryInputs, estimate
from app.planning.specs import Parallelism, Training
from app.units import MIB

KNOWN = catalog.load()


@pytest.mark.parametrize(
    ("gpu", "read_mib", "tolerance"),
    [
        ("h100-sxm-80gb", 518, 0.01),
        ("a100-sxm-80gb", 481, 0.12),  # with PyTorch's first kernels
        ("rtx-pro-6000-blackwell-ws", 555, 0.04),
        ("rtx-6000-ada", 426, 0.04),
        ("rtx-4060-ti-16gb", 107, 0.04),
        ("rtx-3090", 256, 0.04),
        ("t4", 141, 0.15),  # Turing, with fewer warps per SM
    ],
)
def test_cuda_context_as_it_was_read(gpu: str, read_mib: int, tolerance: float) -> None:
    inputs = MemoryInputs(
        KNOWN.model("openai-community/gpt2").architecture,
        Training(sequence_length=64, precision="fp32"),
        Parallelism(),
        KNOWN.gpu(gpu),
        None,
        "detailed",
    )
    (context,) = [part.bytes for part in estimate(inputs).components if part.name == "cuda_context"]
    assert context / MIB == pytest.approx(read_mib, rel=tolerance)
