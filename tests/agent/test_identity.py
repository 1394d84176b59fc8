"""What makes a report the one it is: never the same twice, not even across restarts of the agent."""

from itertools import pairwise
from pathlib import Path

import pytest

from app.agent import identity


def test_numbers_only_grow():
    sequence = identity.Sequence()
    numbers = [sequence.next() for _ in range(10_000)]

    assert all(earlier < later for earlier, later in pairwise(numbers))
    assert numbers[0] < identity.Sequence().next(), "a restarted agent goes on after the one before"
    assert numbers[-1] < 2**53, "every JSON reader can hold it"


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="this kernel has no boot id")
def test_the_boot_id_is_the_kernels():
    assert identity.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_where_the_kernel_has_none_each_process_has_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "_BOOT_ID_FILE", tmp_path / "missing")

    assert identity.boot_id() != identity.boot_id()
