"""What PyTorch makes of FP32 bit patterns in its own 16- and 8-bit formats, for tests to compare with.

Development only: needs torch in an environment of its own. Writes one line for each format, as JSON: the patterns, in
hexadecimal, and the codes that `Tensor.to` gives.

    python tools/reference_casts.py > tests/precision/reference_casts.jsonl
"""

import json
import sys

import torch

FORMATS = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp8_e4m3fnuz": torch.float8_e4m3fnuz,
    "fp8_e5m2fnuz": torch.float8_e5m2fnuz,
}
RANDOM, NEAR = 600, 600


def patterns(kind: torch.dtype) -> torch.Tensor:
    """FP32 patterns: any; and numbers of the format, what lies halfway between two, and a bit to either side."""
    generator = torch.Generator().manual_seed(20_261)
    any_bits = torch.randint(-(2**31), 2**31, (RANDOM,), generator=generator, dtype=torch.int64).to(torch.int32)
    width = torch.iinfo(torch.int16 if kind.itemsize == 2 else torch.int8)
    whole = torch.int16 if kind.itemsize == 2 else torch.int8
    codes = torch.randint(width.min, width.max, (NEAR,), generator=generator, dtype=torch.int64).to(whole)
    lower, upper = codes.view(kind).float(), (codes + 1).to(whole).view(kind).float()
    halfway = ((lower.double() + upper.double()) / 2).float()
    aside = torch.randint(-1, 2, (NEAR,), generator=generator, dtype=torch.int32)
    near = halfway[torch.isfinite(halfway)].view(torch.int32)
    found = torch.cat([any_bits, near + aside[: near.numel()], lower.view(torch.int32)])
    return found[~torch.isnan(found.view(torch.float32))]


def main() -> None:
    for name, kind in FORMATS.items():
        bits = patterns(kind)
        codes = bits.view(torch.float32).to(kind).view(torch.int16 if kind.itemsize == 2 else torch.uint8)
        line = {
            "format": name,
            "torch": torch.__version__,
            "patterns": bits.numpy().tobytes().hex(),
            "codes": codes.numpy().tobytes().hex(),
        }
        json.dump(line, sys.stdout)
        print()


if __name__ == "__main__":
    main()
