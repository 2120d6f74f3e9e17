"""A policy that takes several steps: priced, written in two files, run by the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.core.errors import ParityError, UserError
from edgeprune.core.large import onnx_file
from edgeprune.core.loop import LOOP_KEY, Loop
from edgeprune.export.loop_parts import InParts, check_parts, write_parts
from edgeprune.loading.policies.schedule import denoised
from edgeprune.pipeline import workspace
from edgeprune.profiles.profile import HOST, load_profile
from export.recipes.policy import Policy
from tests.policies import HORIZON, JOINTS, STATE, STEPS, TOP, Denoising

PROFILE = "raspberry-pi-5"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.manual_seed(0)
    policy, out = Denoising().eval(), tmp_path_factory.mktemp("policy") / "out"
    result = edgeprune.prune(policy, policy.dummy_inputs, PROFILE, rate=0.5, data="none",
                             output=out)  # fmt: skip
    return result, out


def test_a_film_conditioned_u_net_shrinks_as_far_as_asked(pruned: tuple[Any, Path]) -> None:
    result, _ = pruned
    assert result.report["rate"]["achieved"] >= 0.5
    assert result.report["met"] and result.report["validation"]["passed"]


def test_nothing_but_its_ends_is_frozen() -> None:
    """FiLM's halves, groups of GroupNorm, a transposed convolution, the skip: all are followed."""
    policy = Denoising().eval()
    coupling = edgeprune.couple(policy, policy.dummy_inputs)
    free = {(slot.parameter, slot.dim) for group in coupling.groups for slot in group.slots}
    weights = [name for name, p in policy.named_parameters() if p.dim() > 1]
    held = {(name, dim) for name in weights for dim in (0, 1)} - free
    assert held == {
        ("network.see.0.weight", 1),
        ("network.down.first.0.weight", 1),
        ("network.down.beside.weight", 1),
        ("network.last.weight", 0),
    }


def test_latency_is_once_and_times_a_step(pruned: tuple[Any, Path]) -> None:
    """Of the graph, as the solver sees it, of the file, and of its parts together."""
    result, out = pruned
    whole, once, step = (
        edgeprune.check(out / name, profile=PROFILE)["latency_ms"]
        for name in ("model.onnx", "once.onnx", "step.onnx")
    )
    assert whole == pytest.approx(result.report["after"]["latency_ms"])
    # What is read twice in one file is read once in two.
    assert whole == pytest.approx(once + STEPS * step, rel=0.03)
    kernels = result.report["kernels_after"]
    assert sum(k["latency_ms"] for k in kernels) == pytest.approx(whole, rel=0.05)


def test_a_budget_is_kept_over_all_steps() -> None:
    torch.manual_seed(0)
    policy = Denoising().eval()
    before = edgeprune.prune(policy, policy.dummy_inputs, PROFILE, rate=0.0, data="none").report
    limit = 0.7 * before["before"]["latency_ms"]
    budgets = edgeprune.Budgets(latency_ms=limit)
    report = edgeprune.prune(policy, policy.dummy_inputs, PROFILE, budgets, data="none").report
    assert report["met"] and 0.6 * limit <= report["after"]["latency_ms"] <= limit


def test_a_whole_file_is_not_measured_as_if_it_ran_once(pruned: tuple[Any, Path]) -> None:
    _, out = pruned
    with pytest.raises(UserError, match=r"runs 4 times for one answer: measure once\.onnx"):
        edgeprune.check(out / "model.onnx", profile=PROFILE, measure=True)


def chunk_of(module: nn.Module, observations: list[dict[str, np.ndarray]], noise: Tensor) -> Any:
    """What PyTorch makes of noise."""
    seen = {
        name.replace(".", "_"): torch.from_numpy(np.stack([o[name] for o in observations]))[None]
        for name in (STATE, TOP)
    }
    loop = Denoising().loop

    def step(x: Tensor, time: float) -> Tensor:
        made: Tensor = module(**seen, sample=x, timestep=torch.tensor([int(time)]))["prediction"]
        return made

    with torch.no_grad():
        return denoised(step, loop.schedule, noise[:, None])[0].numpy()


def observations(count: int) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(0)
    return [
        {STATE: draw.random(4, np.float32), TOP: draw.random((3, 12, 12), np.float32)}
        for _ in range(count)
    ]


@pytest.mark.parametrize("file", ["", "model.onnx"])
def test_the_recipe_gives_the_chunk_that_pytorch_gives(pruned: tuple[Any, Path], file: str) -> None:
    result, out = pruned
    seen = observations(3)
    noise = torch.randn(1 + STEPS, HORIZON, JOINTS, generator=torch.Generator().manual_seed(0))
    policy = Policy(out / file)
    first = policy.chunk(seen[0], noise.numpy())  # the only observation stands for those before
    want = chunk_of(result.graph_module, [seen[0], seen[0]], noise)
    np.testing.assert_allclose(first, want, rtol=1e-4, atol=1e-4)
    assert first.shape == (5, JOINTS)
    policy.observe(seen[1])
    again = policy.chunk(seen[2], noise.numpy())
    want = chunk_of(result.graph_module, [seen[1], seen[2]], noise)
    np.testing.assert_allclose(again, want, rtol=1e-4, atol=1e-4)


def test_the_recipe_carries_a_chunk_out_and_remembers(pruned: tuple[Any, Path]) -> None:
    _, out = pruned
    seen = observations(4)
    policy, other = Policy(out, steps=2, seed=3), Policy(out, seed=3)
    actions = [policy.select_action(each) for each in seen]
    chunk = other.chunk(seen[0])
    np.testing.assert_array_equal(np.stack(actions[:2]), chunk[:2])
    other.observe(seen[1])
    np.testing.assert_array_equal(actions[2], other.chunk(seen[2])[0])
    policy.reset()
    with pytest.raises(ValueError, match=r"lacks observation\.images\.top"):
        policy.chunk({STATE: seen[0][STATE]})
    with pytest.raises(ValueError, match="noise is"):
        policy.chunk(seen[0], np.zeros((2, 2)))


def test_parts_that_are_not_the_whole_are_refused(pruned: tuple[Any, Path], tmp_path: Path) -> None:
    _, out = pruned
    once, step = write_parts(out / "model.onnx", tmp_path)
    inputs = {k: v.numpy() for k, v in Denoising().dummy_inputs.items()}
    check_parts(out / "model.onnx", (once, step), inputs)
    broken = onnx.load(str(step))
    weights = next(t for t in broken.graph.initializer if len(t.dims) == 3)
    for value in (0.0, np.nan):
        spoilt = np.full(len(weights.raw_data) // 4, value, np.float32)
        weights.raw_data = spoilt.tobytes()
        onnx.save(broken, str(step))
        with pytest.raises(ParityError, match=r"once\.onnx and step\.onnx"):
            check_parts(out / "model.onnx", (once, step), inputs)


def test_parts_are_cut_without_the_weights(
    pruned: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = pruned
    monkeypatch.setattr(onnx_file, "LARGE_WEIGHT", 64)
    (tmp_path / "model.onnx").write_bytes((out / "model.onnx").read_bytes())
    made = write_parts(tmp_path / "model.onnx", tmp_path)
    for part in made:
        assert part.read_bytes() == (out / part.name).read_bytes()


def test_a_file_that_runs_once_has_no_parts(pruned: tuple[Any, Path], tmp_path: Path) -> None:
    _, out = pruned
    model = onnx.load(str(out / "model.onnx"))
    kept = [entry for entry in model.metadata_props if entry.key != LOOP_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, str(tmp_path / "plain.onnx"))
    with pytest.raises(UserError, match="runs once"):
        write_parts(tmp_path / "plain.onnx", tmp_path)
    everything = Loop((STATE, TOP, "sample", "timestep"), 3)
    model.metadata_props.add(key=LOOP_KEY, value=everything.as_json())
    onnx.save(model, str(tmp_path / "all.onnx"))
    with pytest.raises(UserError, match="nothing of the model is computed once"):
        write_parts(tmp_path / "all.onnx", tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"inputs": ["x"]}', '{"inputs": [1], "times": 2}',
                                  '{"inputs": ["x"], "times": 0}'])  # fmt: skip
def test_metadata_that_are_no_loop_are_said(text: str) -> None:
    with pytest.raises(UserError, match="are no loop"):
        Loop.from_json(text)


def test_a_loop_survives_its_file() -> None:
    loop = Denoising().loop
    assert Loop.from_json(loop.as_json()).as_json() == loop.as_json()


class Watch:
    """A machine on which a file takes as many milliseconds as it has nodes."""

    def __str__(self) -> str:
        return "a watch"

    def compare(self, before: Path, after: Path, threads: int, in_a_row: int = 1) -> dict[str, Any]:
        assert in_a_row == (STEPS if before.name == "step.onnx" else 1)  # as they run in the loop
        a, b = (float(len(onnx.load(str(file)).graph.node)) for file in (before, after))
        return {"a": {"latency_ms": a}, "b": {"latency_ms": b}, "ratio": b / a}

    def peak_memory_mb(self, model: Path, threads: int) -> float | None:
        return {"once.onnx": 3.0, "step.onnx": 7.0}[model.name]


def test_a_machine_measures_both_parts(pruned: tuple[Any, Path]) -> None:
    """One budget over two files: what is computed once, and as many steps as a chunk takes."""
    _, out = pruned
    once, step = (len(onnx.load(str(out / n)).graph.node) for n in ("once.onnx", "step.onnx"))
    found = InParts(Watch(), STEPS).compare(out / "model.onnx", out / "model.onnx", 1)
    assert found["a"]["latency_ms"] == once + STEPS * step
    assert found["ratio"] == pytest.approx(1)
    assert InParts(Watch(), STEPS).peak_memory_mb(out / "model.onnx", 1) == 7.0


def test_what_is_measured_in_parts_may_stay_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "Here", Watch)
    torch.manual_seed(0)
    policy = Denoising().eval()
    here = load_profile(PROFILE).model_copy(update={"name": HOST})
    report = edgeprune.prune(policy, policy.dummy_inputs, here, rate=0.0, data="none").report
    assert report["before"]["latency_source"] == "measured"
    assert report["before"]["latency_ms"] == report["after"]["latency_ms"] > STEPS
