"""What a device says of itself, from a system that is made up here."""

from __future__ import annotations

import fnmatch
import importlib
import time
from pathlib import Path

import pytest

EXPORT = Path(__file__).parents[2] / "export"
CORE = "/sys/devices/system/cpu/cpu{}/cpufreq/{}"
HEAT = "/sys/class/thermal/"


@pytest.fixture(scope="module")
def stopwatch():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPORT)
        yield importlib.import_module("stopwatch")


@pytest.fixture
def system(stopwatch, monkeypatch, tmp_path):
    """Sets the files of /sys, by path; there are no others, and no programs."""
    files: dict[str, str] = {}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(stopwatch, "_first_line", files.get)
    monkeypatch.setattr(stopwatch, "_cpuinfo_mhz", lambda: None)
    monkeypatch.setattr(stopwatch.glob, "glob", lambda p: sorted(fnmatch.filter(files, p)))
    return files


def clocks(current, highest):
    """The clock files of some cores, in kHz."""
    found = {CORE.format(i, "scaling_cur_freq"): str(khz) for i, khz in enumerate(current)}
    return found | {CORE.format(i, "scaling_max_freq"): str(k) for i, k in enumerate(highest)}


def vcgencmd(folder, answer):
    program = folder / "vcgencmd"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)


def test_a_system_that_says_nothing_gives_none_everywhere(stopwatch, system):
    said = stopwatch.surroundings()
    assert list(said) == [
        *("governor", "load_average", "clock_mhz", "clock_max_mhz", "temperature_c", "throttled")
    ]
    assert all(said[key] is None for key in said if key != "load_average")
    after = stopwatch.aftermath(said)
    assert after == {"clock_after_mhz": None, "temperature_after_c": None, "throttled": None}


def test_the_fastest_core_and_the_hottest_sensor_count(stopwatch, system):
    system.update(clocks([600_000, 1_800_000], [1_400_000, 2_400_000]))
    system[CORE.format(0, "scaling_governor")] = "ondemand"
    zones = {0: "48312", 1: "61200", 2: "-273000", 3: "0", 4: "999000", 5: "", 6: "x"}
    system.update({f"{HEAT}thermal_zone{i}/temp": text for i, text in zones.items()})
    said = stopwatch.surroundings()
    assert (said["clock_mhz"], said["clock_max_mhz"]) == (1800, 2400)
    assert said["temperature_c"] == 61.2 and said["governor"] == "ondemand"


def test_a_clock_well_below_what_was_allowed_under_load_is_throttled(stopwatch, system):
    system.update(clocks([1_500_000], [1_500_000]))
    before = stopwatch.surroundings()
    assert before["throttled"] is None  # idle, a low clock says nothing
    assert stopwatch.aftermath(before)["throttled"] is False
    # Heat lowers what is allowed as well; what counts is what was allowed before.
    system.update(clocks([1_000_000], [1_000_000]))
    assert stopwatch.aftermath(before) == {
        "clock_after_mhz": 1000,
        "temperature_after_c": None,
        "throttled": True,
    }


@pytest.mark.parametrize(
    ("kind", "state", "said"),
    [
        ("thermal-cpufreq-0", "0", False),
        ("thermal-cpufreq-0", "2", True),
        ("Processor", "1", True),
        ("pwm-fan", "3", None),
        ("intel_powerclamp", "-1", None),
    ],
)
def test_the_kernels_own_cooling_of_the_processor_is_throttling(
    stopwatch, system, kind, state, said
):
    system[f"{HEAT}cooling_device0/type"] = kind
    system[f"{HEAT}cooling_device0/cur_state"] = state
    assert stopwatch.throttled() is said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("echo throttled=0x0", False),
        ("echo throttled=0x50000", False),  # it was so since the start, but is not now
        ("echo throttled=0x50005", True),
        ("echo throttled=0x8", True),
        ("echo VCHI initialization failed; exit 255", None),
        ("exec /bin/sleep 9", None),
    ],
)
def test_a_raspberry_pi_is_asked_and_not_waited_for(
    stopwatch, system, tmp_path, monkeypatch, answer, said
):
    monkeypatch.setattr(stopwatch, "VCGENCMD_SECONDS", 0.3 if "sleep" in answer else 9)
    vcgencmd(tmp_path, answer)
    assert stopwatch.throttled() is said


def test_throttling_before_or_after_counts(stopwatch, system, tmp_path):
    vcgencmd(tmp_path, "echo throttled=0x2")
    before = stopwatch.surroundings()
    vcgencmd(tmp_path, "echo throttled=0x20000")
    assert stopwatch.surroundings()["throttled"] is False
    assert stopwatch.aftermath(before)["throttled"] is True


def test_a_sensor_that_refuses_to_be_read_is_none(stopwatch, tmp_path):
    assert stopwatch._first_line(str(tmp_path)) is None
    assert stopwatch._first_line(str(tmp_path / "missing")) is None


def test_noise_is_the_spread_of_the_middle_half(stopwatch):
    assert stopwatch.summarise([10.0] * 90 + [30.0] * 10)["noise"] == 0
    assert stopwatch.summarise([9.0, 9.5, 10.0, 10.5, 11.0])["noise"] == pytest.approx(0.1)
    assert stopwatch.summarise([10.0, 20.0] * 10)["noise"] == pytest.approx(10 / 15, abs=1e-4)


def test_a_measurement_is_noisy_if_it_spreads_or_the_core_was_shared(stopwatch, monkeypatch):
    def spin(milliseconds):
        end = time.thread_time() + milliseconds / 1e3
        while time.thread_time() < end:
            pass

    limits = {"seconds": 0, "warmup": 1, "min_runs": 8}
    waiting = stopwatch.time_alone(lambda: time.sleep(0.004), **limits)
    assert waiting["cpu_share"] < 0.5 and waiting["noisy"] is True
    elsewhere = {**limits, "own_thread": False}  # the work is another thread's, or a GPU's
    monkeypatch.setattr(stopwatch, "NOISY_ABOVE", 9.0)  # whatever else this machine is doing
    assert stopwatch.time_alone(lambda: time.sleep(0.004), **elsewhere)["noisy"] is False
    assert stopwatch.time_alone(lambda: spin(2), **limits)["cpu_share"] > waiting["cpu_share"]
    monkeypatch.setattr(stopwatch, "NOISY_ABOVE", -1.0)
    assert stopwatch.time_alone(lambda: spin(1), **elsewhere)["noisy"] is True
