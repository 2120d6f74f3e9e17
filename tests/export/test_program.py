"""pruned.pt2 is loaded again and compared before it is published, and the caller's world stays."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.core.errors import ParityError
from edgeprune.loading.load import load


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(1)
    )


def pruned(output: Path, **options: Any) -> edgeprune.Result:
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return edgeprune.prune(
        net(), x, profile="raspberry-pi-4", rate=0.3, output=output, data="none", **options
    )


def test_it_loads_again_without_trust_and_computes_the_same(tmp_path: Path) -> None:
    result = pruned(tmp_path / "out")
    loaded = load(str(tmp_path / "out" / "pruned.pt2"))
    x = torch.randn(5, 3, 12, 12)
    assert torch.allclose(loaded.module(x), result.graph_module(x), atol=1e-6)


def test_the_same_seed_gives_the_same_files_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pruned(tmp_path / name)
    for file in ("pruned.pt2", "model.onnx"):
        one, other = ((tmp_path / name / file).read_bytes() for name in ("a", "b"))
        assert one == other, file


@pytest.mark.parametrize("what", ["weight", "bias", "running_var", "nothing is there"])
def test_a_file_that_differs_is_never_published(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.export.save

    def damaging(program: Any, path: Any) -> None:
        if what == "nothing is there":
            Path(path).write_bytes(b"")
            return
        name = next(n for n in program.state_dict if n.endswith(what))
        kept = program.state_dict[name]
        program.state_dict[name] = nn.Parameter(kept.detach() + 0.1, requires_grad=False)
        save(program, path)
        program.state_dict[name] = kept

    monkeypatch.setattr("torch.export.save", damaging)
    with pytest.raises(ParityError, match=r"pruned\.pt2"):
        pruned(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_caller_s_world_is_as_it_was(tmp_path: Path) -> None:
    model = net()
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    grads = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x.repeat(40, 1, 1, 1)), 8)
    with torch.no_grad():
        edgeprune.prune(model, x, profile="raspberry-pi-4", rate=0.3, data=data)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
    assert modes == [m.training for m in model.modules()]
    assert grads == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
