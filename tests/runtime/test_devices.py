"""--device: what isn't there is refused, and a model that lies elsewhere comes back there."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeprune
from edgeprune.core.errors import UserError
from edgeprune.runtime import devices
from edgeprune.runtime.devices import checked_device, home_of, own, resolved
from edgeprune.training import Extras
from edgeprune.training.processes import launched

IMAGE = torch.zeros(1, 3, 8, 8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 4)).eval()


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:0:1", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="choose from auto, cpu, cuda"):
        checked_device(name)


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: PyTorch finds no GPU here"):
        edgeprune.prune(net(), IMAGE, "jetson-nano", rate=0.5, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="cuda:2: PyTorch finds 2 GPUs here, numbered from 0"):
        checked_device("cuda:2")
    assert checked_device("cuda:1") == "cuda:1" and resolved("auto") == "cuda"


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own("cuda") == "cuda" and own("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own("cuda") == "cuda:1" and own("cuda:0") == "cuda:0" and own("cpu") == "cpu"


def test_weights_elsewhere_are_found() -> None:
    module = net()
    assert home_of(module) is None and home_of(nn.ReLU()) is None
    with pytest.raises(UserError, match="meta device"):
        home_of(net().to("meta"))


class Elsewhere(nn.Sequential):
    """As if its weights lay on a GPU: tells when it is brought to the CPU."""

    brought: ClassVar[list[Any]] = []

    def cpu(self) -> Any:
        self.brought.append(self)
        return super().cpu()


def test_a_model_elsewhere_is_copied_and_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    there, went = torch.device("cpu"), []
    monkeypatch.setattr("edgeprune.api.home_of", lambda _: there)
    to = nn.Module.to
    monkeypatch.setattr(
        nn.Module, "to", lambda self, *a, **k: (went.append((self, a)), to(self, *a, **k))[1]
    )
    module = Elsewhere(*net().children()).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = edgeprune.prune(module, IMAGE, "jetson-nano", rate=0.4, data="none")
    assert [type(each) for each in Elsewhere.brought] == [Elsewhere]
    assert Elsewhere.brought[0] is not module  # a copy
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert {id(m) for m, a in went if a == (there,)} >= {id(result.module), id(result.graph_module)}


def test_fine_tuning_runs_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.training import loop

    asked = []

    def noted(precision: str, device: str) -> Any:
        asked.append(device)
        return launched(precision, device)

    monkeypatch.setattr(loop, "launched", noted)
    data = DataLoader(TensorDataset(torch.randn(32, 3, 8, 8), torch.arange(32) % 4), 8)
    result = edgeprune.prune(
        net(), IMAGE, "jetson-nano", rate=0.4, data=data, epochs=1, device="cpu",
        importance="magnitude",
    )  # fmt: skip
    assert asked == ["cpu"] and result.report["device"] == "cpu"
    assert Extras().device == devices.AUTO
    with launched("32-true", "cpu") as fabric:
        assert fabric.device.type == "cpu"
