"""Limits said in words: what is understood, and what is refused with the words marked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.core.errors import UserError
from edgeprune.pipeline.requirements import Requirements, understand


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (
            "under 200 ms and 100 MB on jetson-nano, lose at most 3 %",
            Requirements(200, 100, None, 3, None, "jetson-nano"),
        ),
        (
            "延迟低于200毫秒，内存不超过100MB，精度损失不超过3%",
            Requirements(200, 100, None, 3),
        ),
        (
            "在jetson-nano上延迟不超过20毫秒，模型大小小于10MB",
            Requirements(20, None, 10, profile="jetson-nano"),
        ),
        ("200ms以内，内存100MB以下", Requirements(200, 100)),
        ("参数减少50%，精度下降不超过2个百分点", Requirements(max_drop=2, rate=0.5)),
        ("at least 25 fps on raspberry-pi-4", Requirements(40, profile="raspberry-pi-4")),
        ("Latency must stay below 0.2 s.", Requirements(200)),
        ("file size at most 4.5 MB; memory under 1 GiB", Requirements(None, 1073.741824, 4.5)),
        ("max 10 MB model size", Requirements(size_mb=10)),
        ("remove 50 % of the parameters", Requirements(rate=0.5)),
        ("20 ms or less with at most 2 points accuracy loss", Requirements(20, max_drop=2)),
        (
            "<= 8ms, <= 64 KB on my/own-device.yaml",
            Requirements(8, 0.064, profile="my/own-device.yaml"),
        ),
    ],
)
def test_sentences(said: str, meant: Requirements) -> None:
    assert understand(said) == meant


@pytest.mark.parametrize(
    ("said", "marked"),
    [
        ("fast please", ">>>fast please<<<"),
        ("under 200 ms and quick, 3 MB", "under 200 ms and >>>quick<<<"),
        ("latency under 200", ">>>latency under 200<<<"),
        ("延迟低于200毫秒，要快", ">>>快<<<"),
        ("under 20 ms, at least 100 MB", "at least 100 >>>MB<<<"),
        ("under 20 ms, under 10 ms", "twice"),
        ("-5 ms", ">>>-5 ms<<<"),
        ("on my/own device.yaml", ">>>device.yaml<<<"),
        ("", "says nothing"),
        (",,,", "says nothing"),
    ],
)
def test_what_is_not_understood_is_marked(said: str, marked: str) -> None:
    with pytest.raises(UserError) as caught:
        understand(said)
    assert marked in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_is_understood_or_refused_in_one_line(text: str) -> None:
    try:
        understand(text)
    except UserError as error:
        assert len(str(error).splitlines()) == 1


def test_what_is_understood_reads_back_as_itself() -> None:
    asked = Requirements(200, 100, 10, 3, None, "jetson-nano")
    told = str(asked).replace("points lost", "points loss")
    assert understand(told) == asked


def test_the_same_limit_twice_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    for options in (
        {"budgets": edgeprune.Budgets(latency_ms=3)},
        {"profile": "jetson-nano"},
    ):
        with pytest.raises(UserError, match="leave one out"):
            edgeprune.prune(
                model, torch.randn(1, 8), require="under 5 ms on raspberry-pi-4", **options
            )


def test_the_command_line_says_what_it_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    torch.save(model, tmp_path / "m.pt")
    words = [str(tmp_path / "m.pt"), "--input", "1x8", "--data", "none", "-o", str(tmp_path / "o")]
    assert main([*words, "--require", "移除30%参数，在jetson-nano上"]) == 0
    told = capsys.readouterr()
    assert "0.3 of the parameters removed, on jetson-nano" in told.err
    assert "was understood as" in told.out
    assert main([*words, "--require", "under 5 parsecs"]) == 2
    assert "under 5 >>>parsecs<<<" in capsys.readouterr().err
    assert main([*words, "--require", "on rk3588", "--profile", "host"]) == 2
    assert "leave one out" in capsys.readouterr().err
