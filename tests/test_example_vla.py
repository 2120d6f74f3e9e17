"""The vision-language-action example: its world, its expert, its policy, and a small one pruned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

import edgeprune
from examples.vla import evaluate, expert, generate, shards, train, words
from examples.vla.picture import SIDE, render
from examples.vla.policy import CHUNK, Policy, build
from examples.vla.world import CONTACT, HELD_OUT, OBJECT_RADIUS, Episodes, Scenes, advance, draw


def one(**changes: Any) -> Scenes:
    """A table with a red circle in the middle, to be touched, and the gripper left of it."""
    scenes = draw(1, 0)
    values: dict[str, Any] = {
        "gripper": np.array([[0.2, 0.5]]),
        "objects": np.full((1, 4, 2), 0.5),
        "present": np.array([[True, False, False, False]]),
        "colour": np.zeros((1, 4), dtype=np.int64),
        "shape": np.zeros((1, 4), dtype=np.int64),
        "edge": np.array([-1]),
    }
    return replace(scenes, **{**values, **changes})


def walked(scenes: Scenes) -> Episodes:
    episodes = Episodes(scenes)
    while episodes.running.any():
        episodes.step(expert.act(episodes.scenes))
    return episodes


def test_expert_does_what_it_is_told() -> None:
    episodes = walked(draw(64, HELD_OUT))
    assert episodes.won.mean() >= 0.95


def test_scenes_repeat_and_differ_between_seeds() -> None:
    first, again, other = draw(8, 3), draw(8, 3), draw(8, 4)
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert not np.array_equal(first.gripper, other.gripper)
    assert first.present[:, 0].all() and first.present.sum(1).max() > 2
    kinds = first.colour * len(words.SHAPES) + first.shape
    assert all(len(set(row)) == len(row) for row in kinds.tolist())


def test_a_push_moves_the_object_and_the_rim_stops_both() -> None:
    scenes = one(gripper=np.array([[0.5 - CONTACT - 0.01, 0.5]]))
    right = np.array([[1.0, 0.0]])
    after, touched = advance(scenes, right)
    assert touched[0, 0] and after.objects[0, 0, 0] == pytest.approx(0.54)
    for _ in range(20):
        after, _ = advance(after, right)
    assert after.objects[0, 0] == pytest.approx([1 - OBJECT_RADIUS, 0.5])
    assert after.gripper[0, 0] == pytest.approx(1 - OBJECT_RADIUS - CONTACT)


def test_to_touch_another_object_first_is_a_loss() -> None:
    objects = np.array([[[0.8, 0.5], [0.5, 0.5], [0, 0], [0, 0]]])
    scenes = one(objects=objects, present=np.array([[True, True, False, False]]))
    episodes = Episodes(scenes)
    while episodes.running.any():
        episodes.step(np.array([[1.0, 0.0]]))
    assert not episodes.won.any() and episodes.steps < 10
    assert walked(scenes).won.all()  # the expert goes around it


def test_picture_shows_object_and_gripper() -> None:
    scenes = one()
    picture = render(scenes)
    assert picture.shape == (1, 3, SIDE, SIDE) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, render(scenes))
    red, green, blue = picture[0, :, SIDE // 2, SIDE // 2]
    assert red > 200 and green < 60 and blue < 60
    assert (picture[0, :, SIDE // 2, int(0.2 * SIDE)] > 250).all()  # the gripper's light centre
    missing = render(one(present=np.zeros((1, 4), dtype=np.bool_)))
    changed = (picture != missing).any(1)[0]
    assert changed.sum() == pytest.approx(np.pi * (OBJECT_RADIUS * SIDE) ** 2, rel=0.25)


def test_pictures_do_not_depend_on_what_they_are_rendered_with() -> None:
    scenes = draw(5, 1)
    np.testing.assert_array_equal(render(scenes)[2:3], render(scenes[2:3]))


def test_instructions_survive_the_vocabulary() -> None:
    scenes = draw(200, 2)
    said = [words.decode(tokens) for tokens in scenes.instruction]
    np.testing.assert_array_equal(np.stack([words.encode(s) for s in said]), scenes.instruction)
    assert len(set(said)) > 100
    for numbers, wanted in zip(
        words.named(scenes.instruction), (scenes.colour, scenes.shape), strict=True
    ):
        np.testing.assert_array_equal(numbers, wanted[:, 0])
    for sentence, colour, shape, edge in zip(
        said, scenes.colour[:, 0], scenes.shape[:, 0], scenes.edge, strict=True
    ):
        named = set(sentence.split())
        assert words.COLOURS[colour] in named and named & set(words.SHAPES[shape])
        assert named & set(words.EDGES) == ({words.EDGES[edge]} if edge >= 0 else set())
    with pytest.raises(ValueError, match="grasp"):
        words.encode("grasp the red circle")


def test_a_mirrored_episode_is_what_the_expert_does_in_the_mirrored_world() -> None:
    scenes = draw(16, 5)
    batch = train.Batch(
        *(torch.from_numpy(array) for array in evaluate.observe(scenes)),
        torch.from_numpy(expert.chunk(scenes, CHUNK)).float(),
        torch.from_numpy(2 * scenes.objects[:, 0] - 1).float(),
    )
    mirrored = train.mirrored(batch, 1 | 4)  # x negated, then x for y

    def turned(places: Any) -> Any:
        return np.stack([places[..., 1], 1 - places[..., 0]], axis=-1)

    # Left goes to the bottom, right to the top, top to the left, bottom to the right.
    edges = np.where(scenes.edge < 0, -1, np.array([3, 2, 0, 1])[scenes.edge])
    there = replace(
        scenes, gripper=turned(scenes.gripper), objects=turned(scenes.objects), edge=edges
    )
    np.testing.assert_allclose(mirrored.chunk, expert.chunk(there, CHUNK), atol=1e-5)
    np.testing.assert_allclose(mirrored.state, there.state, atol=1e-6)
    for before, after, edge in zip(scenes.instruction, mirrored.instruction, edges, strict=True):
        assert edge < 0 or words.EDGES[edge] in words.decode(after).split()
        assert edge >= 0 or np.array_equal(before, after)


def test_shards_are_read_as_they_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = generate.frames(6, seed=1)
    assert np.array_equal(made.image, generate.frames(6, seed=1).image)
    assert made.chunk.shape == (len(made), CHUNK, 2)
    with pytest.raises(FileNotFoundError, match="generate"):
        shards.load(tmp_path)
    np.savez_compressed(tmp_path / "shard-000.npz", **vars(made))
    np.testing.assert_array_equal(shards.load(tmp_path).chunk, made.chunk)
    assert len(shards.load(tmp_path, limit=5)) == 5
    monkeypatch.setattr(shards, "load", lambda limit: made)
    image, instruction, state = next(iter(shards.loaders()))
    _, inputs = build(48)
    for got, wanted in zip((image, instruction, state), inputs, strict=True):
        assert got.shape[1:] == wanted.shape[1:] and got.dtype == wanted.dtype
    *_, chunk = next(iter(shards.labelled()))
    assert chunk.shape[1:] == (CHUNK, 2)


def test_training_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez_compressed(tmp_path / "shard-000.npz", **vars(generate.frames(6, seed=1)))
    asked = [*f"--data {tmp_path} --width 48 --batch 16 --steps 4 --check 2 --episodes 2".split()]

    def interrupt(_policy: Policy, _episodes: int) -> float:
        raise KeyboardInterrupt

    train.main([*asked, "--out", str(tmp_path / "whole.pt")])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train, "succeeds", interrupt)  # right after the checkpoint of step 2
        train.main([*asked, "--out", str(tmp_path / "parts.pt")])
    train.main([*asked, "--out", str(tmp_path / "parts.pt"), "--resume"])
    assert "from step 2" in capsys.readouterr().out
    whole, parts = (
        torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt")
    )
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    build(48)[0].load_state_dict(whole)


def test_cells_of_a_place_share_it() -> None:
    places = torch.tensor([[-0.3, 0.55], [0.0, -0.8]])
    shares = train.cells_of(places).unflatten(1, (8, 8))
    centres = (torch.arange(8) + 0.5) / 4 - 1
    torch.testing.assert_close(shares.sum((1, 2)), torch.ones(2))
    torch.testing.assert_close((shares.sum(1) * centres).sum(1), places[:, 0])
    torch.testing.assert_close((shares.sum(2) * centres).sum(1), places[:, 1])


def test_policy_has_ten_million_parameters() -> None:
    assert sum(p.numel() for p in Policy().parameters()) == pytest.approx(10e6, rel=0.05)


@pytest.fixture(scope="module")
def small() -> tuple[Policy, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    return build(48, depth=1)


def test_policy_is_coupled_with_widths_to_choose(
    small: tuple[Policy, tuple[Tensor, Tensor, Tensor]],
) -> None:
    groups = {group.name for group in edgeprune.couple(*small).groups}
    assert any("stage1.conv1" in name for name in groups)
    assert any("head.0" in name for name in groups)


def test_a_pruned_policy_acts_in_the_world_as_its_onnx_file_does(
    small: tuple[Policy, tuple[Tensor, Tensor, Tensor]], tmp_path: Path
) -> None:
    policy, inputs = small
    result = edgeprune.prune(
        policy,
        inputs,
        profile="jetson-nano",
        rate=0.3,
        data="none",
        batch="dynamic",
        output=tmp_path,
    )
    before = sum(p.numel() for p in policy.parameters())
    assert result.report["met"] and result.report["after"]["params"] <= 0.7 * before
    acts = evaluate.load(tmp_path / "model.onnx"), evaluate.from_module(result.module)
    onnx, torch_made = (act(*evaluate.observe(draw(3, 9))) for act in acts)
    np.testing.assert_allclose(onnx, torch_made, atol=1e-4)
    [input_names] = [
        [i.name for i in onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()]
    ]
    assert input_names == ["image", "instruction", "state"]
    won = evaluate.rollout(acts[0], draw(4, HELD_OUT))
    assert won.shape == (4,)


def test_wilsons_interval() -> None:
    low, high = evaluate.wilson(190, 200)
    assert (low, high) == pytest.approx((0.9104, 0.9726), abs=5e-4)
