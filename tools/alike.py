"""How much readings of the nanotron benchmark differ between jobs that should hold the same.

Jobs are alike that differ in the number of replicas and of micro batches only, as long as as many of these are in
flight; what ZeRO shards over replicas is taken off each reading first. For each group of alike jobs the one number is
looked for that misses its readings least, knowing them: an estimator has one number for them too, and does not.

    .venv/bin/python tools/alike.py
"""

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from app.accuracy import rows, scoring
from app.accuracy.grades import percentile

TRUTH = Path(__file__).resolve().parent.parent / "tests" / "ground_truth"
SHARDED = ("master_weights", "optimizer_states")
CANDIDATES = 41


def main() -> None:
    """Prints how far the best number of each group is from its readings."""
    truth = rows.read(TRUTH)
    measured = tuple(row for row in truth.measured if row.source_family == "nanotron_ultrascale")
    groups = defaultdict(list)
    for found in scoring.score(replace(truth, measured=measured, traced=())):
        if found.measured_bytes is None or found.estimate is None or found.inputs is None:
            continue
        training, layout = found.inputs.training, found.inputs.parallelism
        batches = training.gradient_accumulation_steps or 1
        sharded = sum(part.bytes for part in found.estimate.components if part.name in SHARDED)
        alike = (
            tuple(sorted(found.inputs.architecture.sizes.items())),
            training.micro_batch_size,
            min(batches, layout.pipeline_parallel_size),
            batches > 1,
            layout.data_parallel_size > 1,
            layout.model_copy(update={"data_parallel_size": 1}),
        )
        groups[alike].append((found.measured_bytes - sharded, found.measured_bytes))
    several = [readings for readings in groups.values() if len(readings) > 1]
    errors = [error for readings in several for error in _least_errors(readings)]
    print(f"{len(errors)} readings in {len(several)} groups of alike jobs; the best number of each group misses them")
    print(f"by {percentile(errors, 50):.1%} in the median, {percentile(errors, 95):.1%} at the 95th percentile")


def _least_errors(readings: list[tuple[int, int]]) -> list[float]:
    """The errors of the best of evenly spaced numbers: least in the sum of median and largest."""
    lowest, highest = min(held for held, _ in readings), max(held for held, _ in readings)
    best, least = [0.0], math.inf
    for step in range(CANDIDATES):
        number = lowest + (highest - lowest) * step / (CANDIDATES - 1)
        errors = [abs(number - held) / measured for held, measured in readings]
        missed = percentile(errors, 50) + max(errors)
        if missed < least:
            best, least = errors, missed
    return best


if __name__ == "__main__":
    main()
