"""What fuzzing starts from, and what it once broke: each parser answers or tells it in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import CORPUS, PARSERS, parse
from tests.pruning import PRUNES_LSTM

FILES = sorted(p for p in CORPUS.rglob("*") if p.is_file())


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(CORPUS)))
def test_a_parser_answers_or_says_in_one_line(file: Path, tmp_path: Path) -> None:
    told = parse(file.parent.name, file.read_bytes(), tmp_path)
    assert "\n" not in told
    newer = file.parent.name == "program" and not PRUNES_LSTM  # it is of torch 2.13
    if file.name.startswith("sound") and not newer:
        assert not told


@pytest.mark.parametrize("parser", PARSERS)
def test_each_parser_has_something_to_start_from_and_refuses_nothing_much(
    parser: str, tmp_path: Path
) -> None:
    assert any(file.parent.name == parser for file in FILES)
    for content in (b"", b"\x00", b"\xff\xfe{", b"[" * 10_000, b"{}", b"null"):
        assert "\n" not in parse(parser, content, tmp_path)


def test_an_onnx_file_with_a_loose_end_is_named() -> None:
    from edgeprune.core.errors import UserError
    from edgeprune.cost.onnx_reader import load_onnx

    with pytest.raises(UserError, match=r"reads '\*\.bias', which nothing makes"):
        load_onnx(CORPUS / "onnx" / "unconnected.onnx")
