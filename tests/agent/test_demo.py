"""The made-up node: the same for the same name and time, plausible at every moment, and never dull."""

import pytest

from app.agent.demo import CUDA_CONTEXT_BYTES, RESERVED_BYTES, TOTAL_BYTES, DemoSource

START = 1_780_000_200.0
DAY = [START + minute * 60 for minute in range(24 * 60)]


def at(seconds, *, node="demo-1", gpus=8):
    return DemoSource(node, gpus, clock=lambda: seconds).read()


def test_a_node_of_eight_h100s_as_the_driver_would_describe_them():
    reading = at(START)

    assert [gpu.index for gpu in reading.gpus] == list(range(8))
    assert len({gpu.uuid for gpu in reading.gpus}) == 8
    assert len({gpu.pci_bus_id for gpu in reading.gpus}) == 8
    assert {gpu.name for gpu in reading.gpus} == {"NVIDIA H100 80GB HBM3"}
    assert {gpu.memory.total_bytes for gpu in reading.gpus} == {85_520_809_984}
    assert reading.error is None


def test_the_same_node_at_the_same_time_is_the_same_and_another_is_not():
    assert at(START) == at(START)
    assert at(START).gpus != at(START, node="demo-2").gpus
    assert {gpu.uuid for gpu in at(START).gpus} == {gpu.uuid for gpu in at(START + 86_400).gpus}
    assert not {gpu.uuid for gpu in at(START).gpus} & {gpu.uuid for gpu in at(START, node="demo-2").gpus}


def test_the_largest_node_can_be_played():
    assert len({gpu.pci_bus_id for gpu in at(START, gpus=64).gpus}) == 64


@pytest.mark.parametrize("node", ["demo-1", "demo-2", "demo-3"])
def test_every_minute_of_a_day_is_plausible(node):
    for seconds in DAY:
        for gpu in at(seconds, node=node).gpus:
            memory = gpu.memory
            assert memory.used_bytes + memory.free_bytes + memory.reserved_bytes == memory.total_bytes == TOTAL_BYTES
            assert memory.reserved_bytes == RESERVED_BYTES
            assert memory.used_bytes == sum(process.used_memory_bytes for process in gpu.processes)
            assert memory.used_bytes == 0 or memory.used_bytes >= CUDA_CONTEXT_BYTES
            assert 60 < gpu.power_watts <= gpu.power_limit_watts
            assert bool(gpu.utilization.gpu_percent) <= bool(gpu.processes), "only a process keeps a GPU busy"


def test_jobs_come_and_go_and_some_take_several_gpus():
    used = [[gpu.memory.used_bytes for gpu in at(seconds).gpus] for seconds in DAY]

    for index in range(8):
        idle = sum(node[index] == 0 for node in used) / len(used)
        assert 0.2 < idle < 0.8
    full = [value for node in used for value in node if value > TOTAL_BYTES / 2]
    assert full, "some jobs fill more than half a card"
    assert any(len(set(node)) == 1 and node[0] > 0 for node in used), "sometimes one job has all eight"
    assert any(0 in node and any(node) for node in used), "sometimes some are free and some are not"
