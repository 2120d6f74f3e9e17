"""From kernel times to a profile: a made-up device is met, and a real one gives a profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgeprune.calibration import fit as calibration
from edgeprune.calibration.fit import cross_validated, fit, launch_offset_ms
from edgeprune.calibration.host import write_profile
from edgeprune.calibration.observations import Results, Sample, read_results
from edgeprune.calibration.sample_blocks import sample, write_samples
from edgeprune.core.errors import EdgePruneError
from edgeprune.cost.memory import memory_model
from edgeprune.cost.onnx_reader import kernel_graph
from edgeprune.cost.pricing import pricing
from edgeprune.profiles.profile import Fusion, load_profile
from export import microbench
from tests.calibration import tabled
from tests.calibration.hasty import HASTE


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitting in a fraction of a second."""
    for name in ("_LARGE", "_SMALL"):
        shape = {**getattr(calibration, name), "n_estimators": 2}
        monkeypatch.setattr(calibration, name, shape)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this machine measures in a hurry."""
    folder = tmp_path_factory.mktemp("measured")
    for _ in write_samples(folder, 14):
        pass
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HASTE.items():
            patch.setattr(microbench, name, value)
        microbench.measure(folder, folder / "results.jsonl")
    return folder / "results.jsonl"


def with_samples(results: Results, samples: list[Sample]) -> Results:
    return replace(results, samples=tuple(samples))


# -- a made-up device ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40, 46))
def test_networks_that_were_not_measured_are_met(seed: int) -> None:
    profile = tabled.profile()
    graph = kernel_graph(sample(seed), profile.fusion)
    true = sum(tabled.milliseconds(kernel.work({})) for kernel in graph.kernels)
    assert graph.latency_ms(profile, {}) == pytest.approx(true, rel=0.25)


def test_the_figures_are_the_devices() -> None:
    profile = tabled.profile()
    assert profile.peak_gflops.value == pytest.approx(2 * tabled.MACS_PER_MS / 1e6, rel=0.02)
    bytes_per_ms = 4 * tabled.ELEMENTS_PER_MS
    assert profile.memory_bandwidth_gb_s.value == pytest.approx(bytes_per_ms / 1e6, rel=0.05)
    assert profile.launch_overhead_us.value == pytest.approx(1e3 * tabled.LAUNCH_MS, rel=0.05)
    assert profile.efficiency.conv.value > 0.9
    assert (profile.block, profile.channel_multiple) == (16, 16)


def test_a_profile_says_what_was_measured_and_how() -> None:
    profile = tabled.profile()
    assert (profile.name, profile.threads, profile.runtime) == ("made-up", 2, "onnxruntime")
    assert profile.precision == "fp32" and profile.budgets.is_empty
    for part in ("Made-up CPU", "onnxruntime 1.99", "2 thread", "2026-01-02"):
        assert part in profile.title
    for part in ("microbench.py", "onnxruntime 1.99", "2026-01-02"):
        assert part in profile.peak_gflops.source
    assert "performance" in profile.notes and "0.25" in profile.notes
    found = profile.calibration
    assert found is not None
    assert (found.cpu, found.drift, found.clock_mhz) == ("Made-up CPU", 0.01, 1500)
    assert found.networks == 14
    assert found.kernels == sum(len(each.kernels) for each in tabled.results().samples)


def test_the_error_and_its_interval_come_from_networks_left_out() -> None:
    profile = tabled.profile()
    assert profile.interval is not None
    assert 0.5 < profile.expected_error_percent.value < 30
    assert 0.5 < profile.interval.low < profile.interval.high < 1.7
    assert "without it" in profile.expected_error_percent.source
    assert "without it" in profile.interval.source


def test_cross_validation_never_learns_from_the_network_that_it_predicts(few_trees: None) -> None:
    samples = list(tabled.results().samples)
    odd = samples[3]
    slow = tuple(replace(o, ms=50 * o.ms) for o in odd.kernels)
    samples[3] = replace(odd, kernels=slow, ms=50 * odd.ms)
    ratios = cross_validated(samples, tabled.BLOCK, 0.0)
    assert ratios[3] > 20


def test_what_the_profiler_adds_to_each_kernel_is_taken_off(few_trees: None) -> None:
    samples = [
        replace(each, kernels=tuple(replace(o, ms=o.ms + 0.003) for o in each.kernels))
        for each in tabled.results().samples
    ]
    assert launch_offset_ms(tabled.results().samples) == 0
    assert launch_offset_ms(samples) == pytest.approx(0.003, rel=0.01)
    profile = fit(with_samples(tabled.results(), samples), "mine")
    assert profile.launch_overhead_us.value == pytest.approx(1e3 * tabled.LAUNCH_MS, rel=0.05)


def test_disturbed_networks_count_for_nothing(few_trees: None) -> None:
    results = tabled.results()
    noise = replace(results.samples[0], name="noise", noisy=True, ms=1e6)
    wild = replace(noise, kernels=tuple(replace(o, ms=1e3) for o in noise.kernels))
    noisy = fit(with_samples(results, [*results.samples, wild]), "mine", date=tabled.TODAY)
    assert noisy.tables == fit(results, "mine", date=tabled.TODAY).tables
    assert "1 of 15 networks ran unevenly" in noisy.notes
    assert noisy.calibration is not None and noisy.calibration.networks == 14


def test_too_few_networks_are_refused() -> None:
    results = tabled.results()
    few = with_samples(results, list(results.samples[:11]))
    with pytest.raises(EdgePruneError, match=r"only 11 networks.*at least 12"):
        fit(few, "mine")
    disturbed = [replace(each, noisy=each.name < "00004") for each in results.samples]
    with pytest.raises(EdgePruneError, match="only 10 networks"):
        fit(with_samples(results, disturbed), "mine")


@pytest.mark.parametrize("block", [0, 16])
def test_the_fewest_networks_price_every_kind_of_kernel(few_trees: None, block: int) -> None:
    results = tabled.results(12, block)
    profile = fit(results, "mine")
    assert profile.block == block
    for seed in range(12, 60):
        graph = kernel_graph(sample(seed), profile.fusion)
        assert graph.latency_ms(profile, {}) > 0


def test_memory_of_the_device_must_be_known(few_trees: None) -> None:
    results = tabled.results(12)
    silent = replace(results, header={**results.header, "ram_mb": None})
    with pytest.raises(EdgePruneError, match="--ram-mb"):
        fit(silent, "mine")
    assert fit(silent, "mine", ram_mb=512).ram_mb.value == 512
    assert fit(results, "mine", ram_mb=512).ram_mb.value == 512
    assert fit(results, "mine").ram_mb.value == 4096


def test_weights_are_held_at_least_once_whatever_the_peaks_say(few_trees: None) -> None:
    results = tabled.results()
    peaks = {f"{seed:05d}": 100.0 for seed in range(8)}  # as if weights took nothing
    profile = fit(replace(results, peaks_mb=peaks), "mine")
    assert profile.memory is not None and profile.memory.weights.value >= 1


def test_measured_peaks_move_the_memory_model(few_trees: None) -> None:
    results = tabled.results(12)
    usual = memory_model(fit(results, "mine"))
    fusion = Fusion("onnxruntime", tabled.BLOCK)
    graphs = {f"{seed:05d}": kernel_graph(sample(seed), fusion) for seed in range(8)}
    peaks = {name: usual.predict(graph) + 30 for name, graph in graphs.items()}
    profile = fit(replace(results, peaks_mb=peaks), "mine")
    assert profile.memory is not None and "8 sample networks" in profile.memory.base_mb.source
    moved = [memory_model(profile).predict(graph) for graph in graphs.values()]
    assert moved == pytest.approx(list(peaks.values()), rel=0.15)


@pytest.mark.parametrize("tile", [1, 4, 8])
def test_the_tile_is_found_where_the_runtime_has_no_blocks(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stairs:
        def milliseconds(self, works: Any) -> list[Any]:
            return [np.ceil(work.sizes["cout"] / tile) * tile for work in works]

    assert calibration._channel_multiple(Stairs()) == tile  # type: ignore[arg-type]


# -- this machine --------------------------------------------------------------------------------


def test_this_machine_gives_a_profile_that_predicts_it(real: Path, few_trees: None) -> None:
    results = read_results(real)
    profile = fit(results, "here")
    offset = launch_offset_ms(results.samples)  # in small networks it is most of a profile's times
    near = []
    for measured in results.samples:
        graph = kernel_graph(sample(int(measured.name)), profile.fusion)
        together = sum(o.ms for o in measured.kernels)
        predicted = graph.latency_ms(profile, {}) + offset * len(measured.kernels)
        near.append(together / 5 < predicted < 5 * together)
    assert near.count(False) <= 1  # a few runs in a hurry, beside other tests: one may be disturbed
    assert profile.calibration is not None
    assert profile.calibration.kernels == sum(len(s.kernels) for s in results.samples)
    assert profile.ram_mb.value == pytest.approx(results.header["ram_mb"], rel=1e-3)


def test_the_block_is_what_onnxruntimes_own_graphs_say(real: Path, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(sample(2).SerializeToString(), options)
    blocked = b"com.microsoft.nchwc" in (tmp_path / "optimised.onnx").read_bytes()
    assert read_results(real).block in ((8, 16) if blocked else (0,))


def test_times_are_as_they_would_be_at_the_usual_speed(real: Path, tmp_path: Path) -> None:
    lines = [json.loads(text) for text in real.read_text().splitlines()]
    usual = float(np.median([line["reference_ms"] for line in lines if "network" in line]))
    slow = next(line for line in lines if line.get("network") == "00005")
    slow["reference_ms"] = 4 * usual
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    results = read_results(path)
    found = next(each for each in results.samples if each.name == "00005")
    assert found.ms == pytest.approx(slow["ms"] * results.reference_ms / (4 * usual))
    assert results.reference_ms == pytest.approx(usual, rel=0.5)


def test_a_profile_written_and_read_prices_the_same(tmp_path: Path) -> None:
    profile = tabled.profile()
    write_profile(profile, tmp_path / "made-up.yaml")
    again = load_profile(tmp_path / "made-up.yaml")
    assert again == profile
    works = [o.work for o in tabled.results().samples[0].kernels]
    before, after = (pricing(each).milliseconds(works) for each in (profile, again))
    assert [float(ms) for ms in before] == [float(ms) for ms in after]
