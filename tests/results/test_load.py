"""A folder that a run wrote is a model again: the graph, or the user's own class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import edgeprune
from edgeprune.core.errors import UserError

IMAGES = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """(n, c, h, w) to the same, through a width of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.norm(self.conv1(x))))


class Net(nn.Module):
    """(n, 3, 16, 16) to (n, 5), with a removable block, dropout and a width that it states."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.block = Block(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.stem(x)))
        return self.head(self.drop(x.mean((2, 3))))


class Views(nn.Module):
    """A size that stands in the code: the class can't follow where it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x)).view(-1, 32) * 2)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def result(net: Net, tmp_path_factory: pytest.TempPathFactory) -> edgeprune.Result:
    output = tmp_path_factory.mktemp("runs") / "out"
    return edgeprune.prune(
        net, IMAGES[:1], "raspberry-pi-4", rate=0.6, method="channel", data="none", output=output
    )


@pytest.fixture
def folder(result: edgeprune.Result) -> Path:
    return Path(result.report["files"]["onnx"]).parent


def trained(module: nn.Module) -> list[float]:
    """The losses of a few steps in a plain torch loop, as docs/fine-tuning.md shows it."""
    labels = torch.arange(len(IMAGES)) % 5
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    module.train()
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(module(IMAGES), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    module.eval()
    return losses


def test_the_graph_needs_no_class_and_computes_what_was_pruned(
    result: edgeprune.Result, folder: Path
) -> None:
    loaded = edgeprune.load(folder)
    assert not loaded.training
    torch.testing.assert_close(loaded(IMAGES), result.graph_module(IMAGES))


@pytest.mark.parametrize("into", [False, True])
def test_what_is_loaded_trains(into: bool, folder: Path) -> None:
    loaded = edgeprune.load(folder, into=Net() if into else None)
    statistics = loaded.get_buffer("block.norm.running_mean").clone()
    assert loaded.train() is loaded
    assert not torch.equal(loaded(IMAGES), loaded(IMAGES)), "dropout"
    losses = trained(loaded)
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(loaded.get_buffer("block.norm.running_mean"), statistics)
    assert torch.equal(loaded(IMAGES), loaded(IMAGES))


def test_the_users_class_comes_back_with_the_pruned_widths(
    result: edgeprune.Result, folder: Path
) -> None:
    fresh = Net()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    loaded = edgeprune.load(folder, into=fresh)
    assert type(loaded) is Net
    assert loaded.stem.out_channels == result.module.stem.out_channels < 32
    assert loaded.head.in_features == loaded.head.weight.shape[1] == loaded.stem.out_channels
    torch.testing.assert_close(loaded(IMAGES), result.module(IMAGES))
    after = fresh.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_weights_are_a_plain_state_dict(result: edgeprune.Result, folder: Path) -> None:
    weights = load_file(folder / "pruned.safetensors")
    wanted = result.module.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())


def test_removed_blocks_and_tied_weights_come_back(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 32)
            self.blocks = nn.ModuleList(Block(32) for _ in range(3))
            self.head = nn.Linear(32, 50, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            maps = self.words(x).transpose(1, 2).unflatten(2, (4, 4))
            for block in self.blocks:
                maps = block(maps)
            return self.head(maps.mean((2, 3)))

    torch.manual_seed(0)
    ids = torch.randint(50, (1, 16))
    result = edgeprune.prune(
        Tied(),
        ids,
        "raspberry-pi-4",
        rate=0.3,
        method="layer",
        data="none",
        output=tmp_path / "out",
    )
    assert result.report["removed_layers"]
    loaded = edgeprune.load(tmp_path / "out", into=Tied())
    assert loaded.head.weight is loaded.words.weight
    assert sum(isinstance(block, nn.Identity) for block in loaded.blocks) == len(
        result.report["removed_layers"]
    )
    torch.testing.assert_close(loaded(ids), result.module(ids))


def test_a_class_that_can_not_follow_is_named_and_the_graph_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    output = tmp_path / "out"
    x = torch.randn(1, 8)
    edgeprune.prune(Views(), x, "raspberry-pi-4", rate=0.5, data="none", output=output)
    with pytest.raises(UserError, match=r"class Views can't take the pruned widths .*`into` out"):
        edgeprune.load(output, into=Views())
    assert edgeprune.load(output)(torch.randn(3, 8)).shape == (3, 4)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(3, 5)), "Sequential isn't the Net that was pruned"),
        (nn.Module(), "isn't the Net"),
    ],
)
def test_another_class_is_refused(module: nn.Module, words: str, folder: Path) -> None:
    with pytest.raises(UserError, match=words):
        edgeprune.load(folder, into=module)


def test_a_class_that_computes_something_else_is_refused(folder: Path) -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.raises(UserError, match="output differs from the pruned model's"):
        edgeprune.load(folder, into=Other())


def test_folders_that_are_none_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no pruned\.pt2: give the folder"):
        edgeprune.load(tmp_path)
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    (older / "pruned.safetensors").unlink()
    edgeprune.load(older)
    with pytest.raises(UserError, match=r"holds no pruned\.safetensors"):
        edgeprune.load(older, into=Net())
    save_file({"x": torch.zeros(1)}, older / "pruned.safetensors")
    with pytest.raises(UserError, match="not written by edgeprune"):
        edgeprune.load(older, into=Net())
    (older / "pruned.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      rubbish")
    with pytest.raises(UserError):
        edgeprune.load(older, into=Net())


def test_a_recipe_changes_sizes_alone(folder: Path, tmp_path: Path) -> None:
    """The file may be a stranger's: it names attributes of the user's own module."""
    with safe_open(str(folder / "pruned.safetensors"), "pt") as file:
        told = json.loads(file.metadata()["edgeprune"])
    forged = tmp_path / "forged"
    shutil.copytree(folder, forged)
    weights = load_file(folder / "pruned.safetensors")
    for change, words in (
        ({"attributes": {"": {"forward": 3}}}, "Net has no size forward"),
        ({"identities": ["nowhere"]}, "it has no module nowhere"),
        ({"gone": ["block.nowhere"]}, "it has no module block.nowhere"),
        ({"tied": {"head.weight": "nowhere"}}, "the file has no nowhere"),
        ({"code": "import os"}, "not written by edgeprune"),
    ):
        header = json.dumps({**told, "recipe": {**told["recipe"], **change}})
        save_file(weights, forged / "pruned.safetensors", {"edgeprune": header})
        with pytest.raises(UserError, match=words):
            edgeprune.load(forged, into=Net())


def test_the_plain_loop_of_the_how_to_runs(folder: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "fine-tuning.md"
    section = page.read_text(encoding="utf-8").split("## Plain torch")[1]
    code = section.split("```python\n")[1].split("```")[0]
    batches = [(IMAGES, torch.arange(len(IMAGES)) % 5)]
    saved: list[nn.Module] = []
    code = code.replace('torch.save(model, "tuned.pt")', "saved.append(model)")
    names = {"edgeprune": edgeprune, "folder": folder, "MyNetwork": Net, "loader": batches}
    exec(code, {**names, "saved": saved})
    before = edgeprune.load(folder).get_parameter("stem.weight")
    assert saved and not torch.equal(saved[0].get_parameter("stem.weight"), before)
