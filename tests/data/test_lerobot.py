"""Data sets as lerobot records them: read by name, in windows, and to judge a policy by."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.core.errors import UserError
from edgeprune.data.lerobot import ActionError
from edgeprune.data.loaders import load_data, load_metric
from edgeprune.graph.inputs import ExampleInputs
from tests.policies import HORIZON, JOINTS, STATE, TOP, Denoising, Reacting

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

EPISODES, LENGTH, FPS = 5, 10, 10


def picture(number: int) -> np.ndarray[Any, Any]:
    """One colour, which tells the frame: (12, 12, 3)."""
    return np.full((12, 12, 3), 5 * number, np.uint8)


def as_png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, "PNG")
    return buffer.getvalue()


def recorded(path: Path, version: str, **changes: Any) -> Path:
    """Frame n of 50 has the state (n, n, n, n), actions (n, -n, 0), and pictures of n."""
    video = changes.pop("video", False)
    features: dict[str, Any] = {
        STATE: {"dtype": "float32", "shape": [4], "names": None},
        TOP: {"dtype": "video" if video else "image", "shape": [12, 12, 3]},
        "action": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "z"]}},
    }
    for name in changes.pop("without", ()):
        del features[name]
    info = {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 1000,
        "features": features,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        if version < "v3"
        else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        **changes,
    }
    (path / "meta").mkdir(parents=True)
    (path / "meta" / "info.json").write_text(json.dumps(info))
    rows = [rows_of(e, set(features), video) for e in range(EPISODES)]
    folder = path / "data" / "chunk-000"
    folder.mkdir(parents=True)
    if version < "v3":
        for e, each in enumerate(rows):
            parquet.write_table(table(each), folder / f"episode_{e:06d}.parquet")
    else:
        whole = [row for each in rows for row in each]
        parquet.write_table(table(whole), folder / "file-000.parquet")
    if video:
        film(path, version)
    return path


def rows_of(episode: int, features: set[str], video: bool) -> list[dict[str, Any]]:
    made = []
    for frame in range(LENGTH):
        n = float(episode * LENGTH + frame)
        row: dict[str, Any] = {
            "episode_index": episode,
            "frame_index": frame,
            "timestamp": frame / FPS,
            STATE: [n] * 4,
            "action": [n, -n, 0.0],
        }
        if not video:
            row[TOP] = {"bytes": as_png(int(n)), "path": None}
        made.append({k: v for k, v in row.items() if k in features or "_index" in k or k[0] == "t"})
    return made


def table(rows: list[dict[str, Any]]) -> Any:
    return pyarrow.Table.from_pylist(rows)


def film(path: Path, version: str) -> None:
    av = pytest.importorskip("av")
    numbers = [list(range(e * LENGTH, (e + 1) * LENGTH)) for e in range(EPISODES)]
    if version < "v3":
        files = {f"chunk-000/{TOP}/episode_{e:06d}.mp4": each for e, each in enumerate(numbers)}
    else:
        files = {f"{TOP}/chunk-000/file-000.mp4": [n for each in numbers for n in each]}
        folder = path / "meta" / "episodes" / "chunk-000"
        folder.mkdir(parents=True)
        where = [
            {
                "episode_index": e,
                f"videos/{TOP}/chunk_index": 0,
                f"videos/{TOP}/file_index": 0,
                f"videos/{TOP}/from_timestamp": e * LENGTH / FPS,
            }
            for e in range(EPISODES)
        ]
        parquet.write_table(table(where), folder / "file-000.parquet")
    for name, shown in files.items():
        file = path / "videos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(file), "w") as container:
            stream = container.add_stream("mpeg4", rate=FPS)
            stream.width = stream.height = 12
            stream.pix_fmt = "yuv420p"
            for number in shown:
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def inputs_of(policy: Any) -> ExampleInputs:
    return ExampleInputs.named(policy.dummy_inputs)


def all_of(path: Path, policy: Any) -> dict[str, Tensor]:
    """All calibration samples, in the order of the frames."""
    batches = list(load_data(str(path), inputs_of(policy), policy).train)
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    order = joined["observation_state"].reshape(len(joined["observation_state"]), -1)[:, -1]
    return {key: value[order.argsort()] for key, value in joined.items()}


@pytest.mark.parametrize(("version", "video"), [("v2.1", False), ("v3.0", False), ("v2.1", True),
                                                ("v3.0", True)])  # fmt: skip
def test_observations_are_read_by_name(tmp_path: Path, version: str, video: bool) -> None:
    """State and picture of a frame belong together; the last episode is left for judging."""
    seen = all_of(recorded(tmp_path / "set", version, video=video), Reacting())
    state = seen["observation_state"]
    assert state.shape == (40, 4) and state[:, 0].tolist() == list(range(40))
    top = seen["observation_images_top"]
    assert top.shape == (40, 3, 12, 12)
    shown = 255 * top.mean((1, 2, 3)) / 5
    torch.testing.assert_close(shown, state[:, 0], rtol=0, atol=0.7 if video else 1e-4)


def test_a_policy_that_looks_back_gets_histories_and_noisy_actions(tmp_path: Path) -> None:
    path, policy = recorded(tmp_path / "set", "v2.1"), Denoising()
    data = load_data(str(path), inputs_of(policy), policy)
    assert data.test is None and not data.has_labels and "40 of 50 frames" in data.remarks[0]
    seen = all_of(path, policy)
    assert seen["observation_images_top"].shape == (40, 2, 3, 12, 12)
    history = seen["observation_state"][:, :, 0].tolist()
    assert history[:3] == [[0, 0], [0, 1], [1, 2]]
    assert history[10] == [10, 10]  # an episode doesn't look back on the one before
    assert seen["sample"].shape == (40, HORIZON, JOINTS) and set(seen["timestep"].tolist()) == {2}
    # Half of a chunk that began one frame ago: joint 0 is (n - 0) / 2, over all frames.
    mean = float(seen["sample"][:, :2, 0].mean())
    assert mean == pytest.approx(0.5 * 19 / 2, abs=0.3)


def test_without_actions_only_the_first_step_is_shown(tmp_path: Path) -> None:
    path, policy = recorded(tmp_path / "set", "v2.1", without=["action"]), Denoising()
    data = load_data(str(path), inputs_of(policy), policy)
    assert "no actions" in data.remarks[0]
    assert set(all_of(path, policy)["timestep"].tolist()) == {0}


def test_a_policy_is_pruned_on_its_recording(tmp_path: Path) -> None:
    """The whole way: calibrated on some episodes, judged on others, joint by joint."""
    path, policy = recorded(tmp_path / "set", "v2.1"), Denoising().eval()
    metric = ActionError(path, policy, inputs_of(policy))
    result = edgeprune.prune(
        policy, policy.dummy_inputs, "raspberry-pi-5", rate=0.4, data=path, metric=metric,
        output=tmp_path / "out",
    )  # fmt: skip
    report = result.report
    assert report["importance"] != "magnitude" and report["agreement"]["samples"] > 0
    assert report["before"]["metric"] < 0 and report["after"]["metric"] < 0
    told = next(r for r in report["remarks"] if "action error of each joint" in r)
    assert "x " in told and "y " in told and "z " in told and "held-out" in told
    assert (tmp_path / "out" / "once.onnx").exists() and (tmp_path / "out" / "step.onnx").exists()


def test_the_error_is_that_of_the_chunk_in_its_units(tmp_path: Path) -> None:
    """A policy that always answers the state's number is off by what the arm moves."""

    class Standing(Reacting):
        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            n = inputs["observation_state"][:, :1, None]
            return {"action": n * torch.tensor([1.0, -1.0, 0.0]).expand(1, 5, -1)}

    path, policy = recorded(tmp_path / "set", "v3.0"), Standing()
    metric = load_metric(str(path), policy, inputs_of(policy))
    # Step k of a chunk is off by k, where the episode isn't over.
    off = [k for n in range(LENGTH) for k in range(5) if n + k < LENGTH]
    error = sum(off) / len(off)
    assert metric(policy) == pytest.approx(-2 * error / 3, rel=1e-5)
    assert isinstance(metric, ActionError)
    assert "z 0 to 0" in metric.words(metric(policy), metric(policy))[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"without": [TOP]}, "has no observation.images.top"),
        ({"codebase_version": "v1.6"}, "data set of v1.6: v2.0, v2.1, v3.0"),
        ({"features": 3}, "info.json can't be read"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path, policy = recorded(tmp_path / "set", "v2.1", **changes), Reacting()
    with pytest.raises(UserError, match=words):
        load_data(str(path), inputs_of(policy), policy)


def test_files_that_are_damaged_or_absent_are_said(tmp_path: Path) -> None:
    policy = Reacting()
    path = recorded(tmp_path / "set", "v2.1")
    file = path / "data" / "chunk-000" / "episode_000000.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="can't be read as parquet"):
        load_data(str(path), inputs_of(policy), policy)
    empty = recorded(tmp_path / "empty", "v2.1")
    for each in (empty / "data" / "chunk-000").iterdir():
        each.unlink()
    with pytest.raises(UserError, match="holds no frames"):
        load_data(str(empty), inputs_of(policy), policy)
    unfilmed = recorded(tmp_path / "unfilmed", "v2.1", video=True)
    (unfilmed / "videos" / "chunk-000" / TOP / "episode_000001.mp4").unlink()
    with pytest.raises(UserError, match=r"episode_000001\.mp4 can't be played"):
        load_data(str(unfilmed), inputs_of(policy), policy)


def test_what_is_not_a_policy_is_not_judged(tmp_path: Path) -> None:
    path = recorded(tmp_path / "set", "v2.1")
    with pytest.raises(UserError, match="judges a policy of lerobot"):
        load_metric(str(path), nn.Linear(2, 2), ExampleInputs((torch.zeros(1, 2),), {}))
    bare = recorded(tmp_path / "bare", "v2.1", without=["action"])
    with pytest.raises(UserError, match="has no action"):
        load_metric(str(bare), Reacting(), inputs_of(Reacting()))


def test_without_pyarrow_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, policy = recorded(tmp_path / "set", "v2.1"), Reacting()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        load_data(str(path), inputs_of(policy), policy)


def test_the_command_takes_a_recording_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--data and --eval of the same folder: the file's actions are judged on what it holds back."""
    path = str(recorded(tmp_path / "set", "v3.0"))
    words = ["tests.policies:Reacting", "--rate", "0", "--profile", "raspberry-pi-5", "--json",
             "--data", path, "--eval", path, "-o", str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metric_name"] == path and report["before"]["metric"] < 0
    assert report["after"]["metric"] == report["before"]["metric"]
    assert any("action error of each joint" in remark for remark in report["remarks"])
    assert not (tmp_path / "out" / "step.onnx").exists()  # it gives a chunk at once
