"""Ridge regression from sums: the same as from the rows themselves."""

from __future__ import annotations

import torch

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
