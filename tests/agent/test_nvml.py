"""NVML through the real binding: what the driver says comes out exactly, and what it does not say comes out as null."""

from pathlib import Path

import pytest

from app.units import MIB

SCENARIOS = Path(__file__).parents[1] / "nvml"
H100 = (SCENARIOS / "h100.txt").read_text()


def without(scenario: str, key: str) -> str:
    """`scenario` with the key's lines left out."""
    return "".join(line for line in scenario.splitlines(keepends=True) if not line.startswith(f"{key} "))


def failing(scenario: str, key: str, code: int) -> str:
    """`scenario` in which asking for `key` fails with `code` on the first GPU only."""
    first, gpu, rest = scenario.partition("gpu\n")
    before, again, others = rest.partition("gpu\n")
    return first + gpu + without(before, key) + f"{key} !{code}\n" + again + others


def test_a_loaded_h100_is_reported_exactly(agent):
    report = agent.read(H100)

    assert report["error"] is None
    assert report["node"]["driver_version"] == "590.48.01"
    assert report["node"]["cuda_version"] == "13.1"
    assert report["node"]["demo"] is False
    assert report["gpus"][0] == {
        "uuid": "GPU-3f0c1a52-8d94-4c6e-9a35-0c7f1d2e6b01",
        "index": 0,
        "name": "NVIDIA H100 80GB HBM3",
        "memory": {
            "total_bytes": 81_559 * MIB,
            "used_bytes": 19_818 * MIB,
            "free_bytes": (81_559 - 479 - 19_818) * MIB,
            "reserved_bytes": 479 * MIB,
        },
        "utilization": {"gpu_percent": 100, "memory_percent": 11},
        "power_watts": 631.95,
        "power_limit_watts": 700.0,
        "temperature_celsius": 59,
        "pci_bus_id": "00000000:00:09.0",
        "mig_mode": "disabled",
        "processes": [
            {"pid": 11345, "used_memory_bytes": 15_690 * MIB, "name": "gpu_burn"},
            {"pid": 11327, "used_memory_bytes": 2_566 * MIB, "name": "memhog"},
            {"pid": 11328, "used_memory_bytes": 1_542 * MIB, "name": "memhog"},
        ],
        "error": None,
    }
    assert report["gpus"][1]["memory"]["used_bytes"] == 0
    assert report["gpus"][1]["processes"] == []


def test_a_driver_too_old_for_the_newest_calls_answers_the_older_ones(agent):
    gpu = agent.read(H100, library="old")["gpus"][0]

    assert gpu["memory"] == {
        "total_bytes": 81_559 * MIB,
        "used_bytes": (479 + 19_818) * MIB,
        "free_bytes": (81_559 - 479 - 19_818) * MIB,
        "reserved_bytes": None,
    }
    assert gpu["temperature_celsius"] == 59
    assert [process["pid"] for process in gpu["processes"]] == [11345, 11327, 11328]


def test_a_card_that_does_not_know_a_newer_struct_is_asked_for_the_older_one(agent):
    gpu = agent.read(failing(H100, "memory_v2", 25))["gpus"][0]

    assert gpu["memory"]["reserved_bytes"] is None
    assert gpu["memory"]["total_bytes"] == 81_559 * MIB
    assert gpu["error"] is None


def test_mig_mode_hides_utilisation_and_lists_a_process_per_instance(agent):
    (gpu,) = agent.read((SCENARIOS / "h100-mig.txt").read_text())["gpus"]

    assert gpu["mig_mode"] == "enabled"
    assert gpu["utilization"] is None
    assert gpu["memory"]["used_bytes"] == 11_125 * MIB
    assert gpu["processes"] == [
        {"pid": 21198, "used_memory_bytes": 7_484 * MIB, "name": None},
        {"pid": 21180, "used_memory_bytes": (2_296 + 1_272) * MIB, "name": "memhog"},
    ]
    assert gpu["error"] is None


def test_a_process_that_draws_and_computes_is_counted_once(agent):
    (gpu,) = agent.read((SCENARIOS / "rtx-4080-super.txt").read_text())["gpus"]

    assert gpu["mig_mode"] is None
    assert gpu["processes"] == [
        {"pid": 5022, "used_memory_bytes": 503 * MIB, "name": "ffmpeg"},
        {"pid": 5021, "used_memory_bytes": 360 * MIB, "name": None},
        {"pid": 2165, "used_memory_bytes": 25 * MIB, "name": "kwin_wayland"},
    ]


def test_unified_memory_is_null_and_no_illness(agent):
    (gpu,) = agent.read((SCENARIOS / "gb10.txt").read_text())["gpus"]

    assert gpu["name"] == "NVIDIA GB10"
    assert gpu["memory"] is None
    assert gpu["power_limit_watts"] is None
    assert gpu["power_watts"] == 11.2
    assert gpu["processes"] == [{"pid": 3311, "used_memory_bytes": None, "name": None}]
    assert gpu["error"] is None


def test_a_total_of_zero_is_no_memory_reading(agent):
    (gpu,) = agent.read((SCENARIOS / "gb10.txt").read_text().replace("memory_v2 !3", "memory_v2 0 0 0 0"))["gpus"]

    assert gpu["memory"] is None
    assert gpu["error"] is None


FIELDS = {
    "name": "name",
    "pci_bus_id": "pci_bus_id",
    "memory_v2": "memory",
    "utilization": "utilization",
    "power_milliwatts": "power_watts",
    "power_limit_milliwatts": "power_limit_watts",
    "temperature": "temperature_celsius",
    "mig_mode": "mig_mode",
}


@pytest.mark.parametrize("code", [3, 4, 999], ids=["not supported", "no permission", "unknown error"])
def test_fields_a_card_does_not_offer_are_null_and_the_rest_is_there(agent, code):
    """Every second field fails, then every other one, so that each is seen missing and each is seen to survive."""
    healthy = agent.read(H100)["gpus"][0]
    for missing in (list(FIELDS)[::2], list(FIELDS)[1::2]):
        scenario = H100
        for key in missing:
            if (key, code) != ("memory_v2", 999):  # without its memory a card is sick, see below
                scenario = failing(scenario, key, code)
        gpu = agent.read(scenario)["gpus"][0]
        for key, name in FIELDS.items():
            assert gpu[name] == (None if f"{key} !{code}" in scenario else healthy[name]), name
        assert gpu["error"] is None


@pytest.mark.parametrize(
    "line", ["power_milliwatts 4294967295", "temperature 4294967295", "utilization 4294967295 4294967295"]
)
def test_numbers_that_mean_not_available_are_null(agent, line):
    key = line.split()[0]
    scenario = without(H100, key).replace("memory_v2", f"{line}\nmemory_v2")

    gpu = agent.read(scenario, library="old")["gpus"][0]

    assert gpu[FIELDS[key]] is None
    assert gpu["error"] is None


@pytest.mark.parametrize(
    ("key", "code", "error"),
    [
        ("handle", 15, "GPU is lost"),
        ("handle", 999, "Unknown Error"),
        ("uuid", 15, "GPU is lost"),
        ("memory_v2", 15, "GPU is lost"),
        ("memory_v2", 16, "GPU requires restart"),
        ("memory_v2", 999, "Unknown Error"),
        ("temperature", 15, "GPU is lost"),
        ("compute", 16, "GPU requires restart"),
    ],
)
def test_one_sick_gpu_is_reported_as_sick_and_the_other_as_usual(agent, key, code, error):
    report = agent.read(failing(H100, key, code))

    sick, healthy = report["gpus"]
    assert report["error"] is None
    assert sick["error"] == error
    assert sick["memory"] is None
    assert sick["index"] == 0
    assert healthy["error"] is None
    assert healthy["memory"]["free_bytes"] == (81_559 - 479) * MIB


def test_a_gpu_lost_under_a_running_agent_keeps_its_identity_and_comes_back(agent, eventually):
    agent.play(H100)
    running = agent.start("--print", "--interval-seconds", "0.1")
    eventually(lambda: len(running.reports()) > 0)
    agent.play(failing(H100, "handle", 15))
    eventually(lambda: running.reports()[-1]["gpus"][0]["error"] == "GPU is lost")
    lost = running.reports()[-1]["gpus"][0]
    agent.play(H100)
    eventually(lambda: running.reports()[-1]["gpus"][0]["error"] is None)

    assert lost["uuid"] == "GPU-3f0c1a52-8d94-4c6e-9a35-0c7f1d2e6b01"
    assert lost["name"] == "NVIDIA H100 80GB HBM3"
    assert lost["pci_bus_id"] == "00000000:00:09.0"
    changes = [(line["message"], line["part"], line.get("reason")) for line in running.log()]
    assert changes == [("not well", "GPU 0", "GPU is lost"), ("well again", "GPU 0", None)]


def test_nvml_is_opened_anew_for_a_gpu_that_came_back(agent):
    agent.play(H100.replace("memory_v2", "lost_until_init 2\nmemory_v2", 1))
    script = """
from app.agent.nvml import NvmlSource
for reopen_when_sick_seconds in (3600.0, 0.0):
    source = NvmlSource(reopen_when_sick_seconds=reopen_when_sick_seconds)
    print([source.read().gpus[0].error for _ in range(3)])
    source.close()
    os.unsetenv("STANDIN_NVML_INIT_COUNT")
"""
    running = agent.python("import os" + script)

    assert running.stdout.read_text().splitlines() == [
        "['GPU is lost', 'GPU is lost', 'GPU is lost']",
        "['GPU is lost', None, None]",
    ]


def test_a_gpu_that_is_lost_before_the_agent_starts_has_no_identity(agent):
    sick = agent.read(failing(H100, "handle", 15))["gpus"][0]

    assert (sick["uuid"], sick["name"], sick["index"]) == (None, None, 0)


def test_cards_that_vanish_do_not_lend_their_identity_to_others(agent, eventually):
    node, _, second = H100.split("gpu\n")
    agent.play(H100)
    running = agent.start("--print", "--interval-seconds", "0.1")
    eventually(lambda: len(running.reports()) > 0)
    agent.play(f"{node}gpu\n{second}handle !15\n")
    eventually(lambda: len(running.reports()[-1]["gpus"]) == 1)

    (lost,) = running.reports()[-1]["gpus"]
    assert (lost["error"], lost["uuid"]) == ("GPU is lost", None)


def test_two_cards_with_one_uuid_are_an_error_of_the_driver_not_the_end_of_the_agent(agent):
    report = agent.read(H100.replace("6b02", "6b01"))

    assert report["gpus"] == []
    assert report["error"] == "the driver gives an impossible reading: two GPUs of one node have the same uuid"


@pytest.mark.parametrize(
    ("scenario", "library", "error"),
    [
        (H100, "none", "no NVIDIA driver library (libnvidia-ml.so.1) here"),
        (H100, "mismatch", "the NVIDIA kernel driver and its library have different versions"),
        ("init !18\n" + H100, "current", "the NVIDIA kernel driver and its library have different versions"),
        ("init !9\n" + H100, "current", "the NVIDIA kernel driver is not loaded"),
        ("init !4\n" + H100, "current", "the agent may not use the NVIDIA driver"),
        ("init !999\n" + H100, "current", "the NVIDIA driver answers with an unknown error"),
        ("init !27\n" + H100, "current", "NVML fails: "),
        ("count !999\n" + H100, "current", "the NVIDIA driver answers with an unknown error"),
        (None, "current", "the NVIDIA kernel driver is not loaded"),
    ],
)
def test_a_node_whose_driver_cannot_be_asked_still_reports_and_says_why(agent, scenario, library, error):
    report = agent.read(scenario, library=library)

    assert report["gpus"] == []
    assert report["error"].startswith(error)
    assert report["node"]["driver_version"] is None


def test_a_node_without_gpus_is_no_error(agent):
    report = agent.read("driver_version 590.48.01\ncuda_version 13010\n")

    assert (report["gpus"], report["error"]) == ([], None)


def test_a_driver_reloaded_under_a_running_agent_is_picked_up(agent, eventually):
    agent.play(H100)
    running = agent.start("--print", "--interval-seconds", "0.1")
    eventually(lambda: len(running.reports()) > 0)
    agent.play("init !9\ncount !1\n" + H100)
    eventually(lambda: running.reports()[-1]["error"] is not None)
    agent.play(H100.replace("590.48.01", "595.80"))
    eventually(lambda: running.reports()[-1]["error"] is None)

    assert running.reports()[-1]["node"]["driver_version"] == "595.80"
    assert len(running.reports()[-1]["gpus"]) == 2


def test_a_library_replaced_under_a_running_agent_is_loaded_anew(agent, nvml_libraries, tmp_path, eventually):
    library = tmp_path / "lib" / "libnvidia-ml.so.1"
    library.parent.mkdir()
    library.write_bytes((nvml_libraries["mismatch"] / library.name).read_bytes())
    agent.play(H100)
    running = agent.start("--print", "--interval-seconds", "0.1", library=library.parent)
    eventually(lambda: len(running.reports()) > 0)
    upgraded = library.with_suffix(".new")
    upgraded.write_bytes((nvml_libraries["current"] / library.name).read_bytes())
    upgraded.rename(library)
    eventually(lambda: len(running.reports()[-1]["gpus"]) == 2)

    assert running.reports()[0]["error"].startswith("the NVIDIA kernel driver and its library have different versions")


@pytest.mark.parametrize(
    ("detail", "first"),
    [
        ("named", {"pid": 11345, "used_memory_bytes": 15_690 * MIB, "name": "gpu_burn"}),
        ("unnamed", {"pid": 11345, "used_memory_bytes": 15_690 * MIB, "name": None}),
    ],
)
def test_processes_are_told_in_the_detail_asked_for(agent, detail, first):
    assert agent.read(H100, "--processes", detail)["gpus"][0]["processes"][0] == first


def test_processes_can_be_left_out(agent):
    assert agent.read(H100, "--processes", "none")["gpus"][0]["processes"] is None
