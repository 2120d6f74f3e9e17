"""Ridge regression from sums: the same as from the rows themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgeprune.core.distributed import Share
from edgeprune.reconstruction import ridge
from edgeprune.reconstruction.ridge import Moments, fit


def moments(
    x: torch.Tensor, y: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor
) -> Moments:
    found = Moments(matrix, offset)
    for part, wanted in zip(x.split(50), y.split(50), strict=True):
        found.add(part[None], wanted[None])
    return found


def test_weights_that_made_the_targets_are_found() -> None:
    torch.manual_seed(0)
    true, shift = torch.randn(3, 6), torch.randn(3)
    x = torch.randn(600, 6) + 1
    y = x @ true.T + shift
    matrix, offset = torch.zeros(1, 3, 6).double(), torch.zeros(1, 3).double()
    found = fit(
        moments(x[:500], y[:500], matrix, offset), moments(x[500:], y[500:], matrix, offset), True
    )
    assert found is not None
    torch.testing.assert_close(found.matrix[0].float(), true, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.offset[0].float(), shift, rtol=1e-2, atol=1e-2)
    made = x @ true.T
    torch.testing.assert_close(found.mean[0].float(), made.mean(0), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.variance[0].float(), made.var(0), rtol=2e-2, atol=1e-2)


def test_the_ridge_is_chosen_on_what_the_fit_does_not_see() -> None:
    """With fewer rows than inputs an unhindered fit follows the noise."""
    torch.manual_seed(1)
    true = torch.randn(1, 40)
    x = torch.randn(260, 40)
    y = x @ true.T + 3 * torch.randn(260, 1)
    matrix = (true + 0.3 * torch.randn(1, 40))[None].double()
    offset = torch.zeros(1, 1).double()
    seen, held = (
        moments(x[:50], y[:50], matrix, offset),
        moments(x[50:80], y[50:80], matrix, offset),
    )
    found = fit(seen, held, True)
    rest = x[80:], y[80:]
    before = float((rest[0] @ matrix[0].float().T - rest[1]).square().mean())
    after = before
    if found is not None:
        made = rest[0] @ found.matrix[0].float().T + found.offset[0].float()
        after = float((made - rest[1]).square().mean())
    plain = torch.linalg.lstsq(x[:50], y[:50]).solution
    assert after < 1.1 * before
    assert after < float((rest[0] @ plain - rest[1]).square().mean())


def test_weights_that_are_right_already_stay() -> None:
    torch.manual_seed(2)
    true = torch.randn(2, 5)
    x = torch.randn(300, 5)
    y = x @ true.T + torch.randn(300, 2)
    best = torch.linalg.lstsq(x, y).solution.T[None].double()
    offset = torch.zeros(1, 2).double()
    seen, held = moments(x[:250], y[:250], best, offset), moments(x[250:], y[250:], best, offset)
    found = fit(seen, held, False)
    if found is not None:  # a gain of under a thousandth is none
        assert float((found.matrix - best).abs().max()) < 0.1


def test_groups_are_fitted_apart() -> None:
    torch.manual_seed(3)
    true = torch.randn(2, 3, 4)
    x = torch.randn(2, 400, 4)
    y = x @ true.transpose(1, 2)
    start, offset = torch.zeros(2, 3, 4).double(), torch.zeros(2, 3).double()
    seen, held = Moments(start, offset), Moments(start, offset)
    seen.add(x[:, :300], y[:, :300])
    held.add(x[:, 300:], y[:, 300:])
    found = fit(seen, held, False)
    assert found is not None
    torch.testing.assert_close(found.matrix.float(), true, rtol=1e-3, atol=1e-3)


def test_masked_weights_are_fitted_among_those_that_are_left() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(12) + 0.2 * torch.randn(12, 12, generator=generator)
    x = torch.randn(2, 400, 12, generator=generator) @ mixing
    mask = torch.rand(2, 5, 12, generator=generator) < 0.5
    matrix = torch.randn(2, 5, 12, generator=generator).double() * mask
    y = x @ torch.randn(2, 12, 5, generator=generator) + 0.1 * torch.randn(
        2, 400, 5, generator=generator
    )
    seen, held = (Moments(matrix, torch.zeros(2, 5).double()) for _ in range(2))
    seen.add(x[:, :300], y[:, :300])
    held.add(x[:, 300:], y[:, 300:])
    found = fit(seen, held, True, mask)
    assert found is not None
    assert not found.matrix[~mask].any()
    for group in range(2):
        for output in range(5):
            kept = mask[group, output]
            inputs = torch.cat([x[group][:, kept], torch.ones(400, 1)], 1).double()
            want = torch.linalg.lstsq(inputs, y[group, :, output].double()[:, None]).solution[
                :-1, 0
            ]
            got = found.matrix[group, output][kept]
            assert torch.allclose(got, want, atol=0.05 * float(want.abs().max()) + 0.01)


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 inputs count as many."""
    monkeypatch.setattr(ridge, "_DEEP", 256)
    monkeypatch.setattr(ridge, "_LARGE_DEPTH", 255)


def few_rows(groups: int, rows: int) -> tuple[Moments, Moments, torch.Tensor, torch.Tensor]:
    """So many rows of 300 inputs that depend on one another, seen and half as many held out."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    every = rows + rows // 2
    x = drawn(groups, every, 20) @ drawn(groups, 20, 300) + 0.3 * drawn(groups, every, 300) + 0.5
    y = x @ drawn(groups, 300, 7) / 17 + 0.1 * drawn(groups, every, 7)
    matrix, offset = drawn(groups, 7, 300).double() / 17, drawn(groups, 7).double()
    seen, held = Moments(matrix, offset), Moments(matrix, offset)
    for part, wanted in zip(x[:, :rows].split(30, 1), y[:, :rows].split(30, 1), strict=True):
        seen.add(part, wanted)
    held.add(x[:, rows:], y[:, rows:])
    return seen, held, x, y


@pytest.mark.usefixtures("deep")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("has_offset", [False, True])
def test_few_rows_give_what_their_sums_would(
    masked: bool, has_offset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.rand(2, 7, 300, generator=torch.Generator().manual_seed(5)) < 0.5
    found = []
    for share in (ridge._FEW_ROWS, 0.0):
        monkeypatch.setattr(ridge, "_FEW_ROWS", share)
        seen, held, *_ = few_rows(2, 80)
        assert seen.inputs.are_few == held.inputs.are_few == (share > 0)
        found.append(fit(seen, held, has_offset, mask if masked else None))
    one, other = found
    assert one is not None and other is not None
    close = {"rtol": 1e-2, "atol": 1e-2}
    for name in ("matrix", "offset", "mean", "variance"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **close)


@pytest.mark.usefixtures("deep")
@pytest.mark.parametrize("rows", [80, 600])
def test_masked_weights_solve_their_own_equations(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against an exact solution for each output (values up to 0.1), few rows or many."""
    monkeypatch.setattr(ridge, "_STEPS", 400)
    seen, held, x, y = few_rows(1, rows)
    mask = torch.rand(1, 7, 300, generator=torch.Generator().manual_seed(5)) < 0.5
    every = seen + held
    assert every.inputs.are_few == (rows == 80)
    got, shift = ridge._masked(every, 1e-2, True, mask, None, 1e-5)
    rows_x = x[0].double() - x[0].double().mean(0)
    lacks = y[0].double() - (x[0].double() @ seen.matrix[0].T + seen.offset[0])
    weight = 1e-2 * rows_x.square().mean()
    for output in range(7):
        kept = mask[0, output]
        part = rows_x[:, kept]
        left = part.T @ part / len(part) + weight * torch.eye(int(kept.sum())).double()
        want = torch.linalg.solve(left, part.T @ (lacks[:, output]) / len(part))
        torch.testing.assert_close(got[0, kept, output], want, rtol=1e-2, atol=1e-3)
        assert not got[0, ~kept, output].any()
        free = (lacks - x[0].double() @ got[0])[:, output].mean()
        torch.testing.assert_close(shift[0, output], free, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("deep")
def test_smaller_ridges_are_tried_while_they_do_better(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[float, bool]] = []
    whole = ridge._masked

    def watched(moments: Moments, share: float, *rest: Any) -> Any:
        tried.append((share, rest[2] is not None))
        return whole(moments, share, *rest)

    monkeypatch.setattr(ridge, "_masked", watched)
    seen, held, *_ = few_rows(1, 80)
    mask = torch.ones(1, 7, 300, dtype=torch.bool)
    fit(seen, held, True, mask)
    assert tried[0] == (1.0, False) and all(started for _, started in tried[1:])
    assert [share for share, _ in tried[:-1]] == sorted({s for s, _ in tried}, reverse=True)
    noise = Moments(seen.matrix, seen.offset)
    generator = torch.Generator().manual_seed(6)
    noise.add(torch.randn(1, 80, 300, generator=generator), torch.randn(1, 80, 7))
    tried.clear()
    ridge._tried_masked(noise, held, True, mask)
    assert [share for share, _ in tried] == [1.0, 1e-2]  # the second was worse


@pytest.mark.usefixtures("deep")
def test_the_ridge_of_masked_weights_is_chosen_once_for_the_same_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, held, *_ = few_rows(1, 80)
    mask = torch.rand(1, 7, 300, generator=torch.Generator().manual_seed(5)) < 0.5
    first = fit(seen, held, True, mask)
    assert first is not None and first.ridge is not None
    tried: list[float] = []
    whole = ridge._masked

    def watched(moments: Moments, share: float, *rest: Any) -> Any:
        tried.append(share)
        return whole(moments, share, *rest)

    monkeypatch.setattr(ridge, "_masked", watched)
    again = fit(seen, held, True, mask, first)
    assert tried == [first.ridge] * 2  # to compare, and from all rows
    assert again is not None
    left = [held.error((each.matrix - seen.matrix).transpose(1, 2), each.offset - seen.offset)
            for each in (first, again)]  # fmt: skip
    assert abs(left[0] - left[1]) < 0.1 * left[0]


@pytest.mark.usefixtures("deep")
def test_inputs_that_are_known_are_factorised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    whole = torch.linalg.cholesky_ex

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return whole(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    for rows in (80, 600):
        seen, held, x, y = few_rows(2, rows)
        first = fit(seen, held, True)
        before = len(made)
        again_seen, again_held = seen.for_new_targets(), held.for_new_targets()
        again_seen.add(x[:, :rows], y[:, :rows])
        again_held.add(x[:, rows:], y[:, rows:])
        again = fit(again_seen, again_held, True)
        assert first is not None and again is not None and len(made) == before
        torch.testing.assert_close(first.matrix, again.matrix, rtol=1e-2, atol=1e-3)


def test_each_process_tries_a_share_of_the_ridges(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, held, *_ = few_rows(1, 80)
    alone = ridge.tried(seen, held, True)
    parts: list[dict[float | None, float]] = []

    def gathered(self: Share, value: Any) -> list[Any]:
        parts.append(value)
        return parts

    monkeypatch.setattr(Share, "gathered", gathered)
    ridge.tried(seen, held, True, Share(1, 2))
    together = ridge.tried(seen, held, True, Share(0, 2))
    assert together == alone and list(together) == list(alone)
    others, first = parts
    assert others.keys() | first.keys() == alone.keys() and not others.keys() & first.keys()
    # Scaling takes nearly no time, and the answer is the first one's to compute.
    assert len(others) >= len(first.keys() - {None}) + 1
