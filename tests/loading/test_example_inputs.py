"""Inputs: reading --input, where shapes come from, and how names meet forward's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.graph.free_sizes import BATCH, FreeSize, FreeSizes
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.loading.example_inputs import describe, example_inputs, leaving_free
from edgeprune.loading.input_spec import InputSpec, parse_input, parse_inputs


class TwoInputs(nn.Module):
    """forward(image, mask, *, scale=None, ids=None)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(
        self, image: Tensor, mask: Tensor, *, scale: Any = None, ids: Any = None
    ) -> tuple[Any, ...]:
        return self.conv(image), mask, scale, ids


class Classifier(nn.Sequential):
    """Accepts 28 x 28 alone."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 10))


def specs(*texts: str) -> list[InputSpec]:
    return parse_inputs(texts)


def refusal(module: nn.Module, *texts: str, loaded: ExampleInputs | None = None) -> str:
    with pytest.raises(UserError) as caught:
        example_inputs(module, specs(*texts), loaded)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x3x224x224", InputSpec(None, (1, 3, 224, 224), torch.float32)),
        ("1x16:int64", InputSpec(None, (1, 16), torch.int64)),
        ("ids=1x16:int32", InputSpec("ids", (1, 16), torch.int32)),
        ("x=4x2", InputSpec("x", (4, 2), torch.float32)),
        ("mask=1x8:bool", InputSpec("mask", (1, 8), torch.bool)),
        ("7:float32", InputSpec(None, (7,), torch.float32)),
    ],
)
def test_an_input_is_read_and_written_back(text: str, expected: InputSpec) -> None:
    assert parse_input(text) == expected
    assert parse_input(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "1x", "1xx3", "-1x3", "1.5x3", "0x3", "1x0", "1,3", "=1x3", "a b=1x3", "1x3:"),
        *("1x3:float8", "1x3:nothing", "1x3\n1x4", "missing.npy", "missing.png"),
        "99999x99999x99999",
    ],
)
def test_what_is_no_input_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--input") as caught:
        parse_input(text)
    assert "\n" not in str(caught.value)


def test_values_are_the_same_every_time_and_normal() -> None:
    module = nn.Conv2d(3, 4, 3)
    first, second = (example_inputs(module, specs("2x3x32x32"))[0].args[0] for _ in range(2))
    assert torch.equal(first, second)
    assert abs(first.std().item() - 1) < 0.1


def test_integers_are_indices_of_the_embedding_and_0_or_1_without_one() -> None:
    small = example_inputs(nn.Embedding(5, 2), specs("4x64:int64"))[0].args[0]
    large = example_inputs(nn.Embedding(5000, 2), specs("4x64:int32"))[0].args[0]
    assert (int(small.min()), int(small.max()), small.dtype) == (0, 4, torch.int64)
    assert 50 < int(large.max()) < 100
    assert large.dtype == torch.int32
    other = example_inputs(nn.Identity(), specs("4x64:int64"))[0].args[0]
    assert set(other.flatten().tolist()) == {0, 1}


def test_booleans_are_true() -> None:
    assert bool(example_inputs(nn.Identity(), specs("2x3:bool"))[0].args[0].all())


def test_names_that_lead_forward_go_by_position_in_its_order() -> None:
    inputs, remarks = example_inputs(TwoInputs(), specs("mask=1x2:bool", "image=1x3x8x8"))
    assert [tuple(a.shape) for a in inputs.args] == [(1, 3, 8, 8), (1, 2)]
    assert (dict(inputs.kwargs), remarks) == ({}, ())


def test_unnamed_inputs_come_first_and_the_other_names_are_keywords() -> None:
    inputs, _ = example_inputs(TwoInputs(), specs("ids=1x4:int64", "1x3x8x8", "mask=1x2:bool"))
    assert [tuple(a.shape) for a in inputs.args] == [(1, 3, 8, 8), (1, 2)]
    assert list(inputs.kwargs) == ["ids"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["1x3x8x8"], "give --input for mask too"),
        (["mask=1x2"], "give --input for image too"),
        (["nose=1x2"], "names nose, but forward takes image, mask, scale, ids"),
        (["1x3x8x8", "image=1x3x8x8"], "image twice"),
        (["mask=1x2", "mask=1x2"], "mask twice"),
        (["1x3x8x8", "1x2", "1x2"], "3 inputs without a name"),
        ([], "several inputs (image, mask)"),
    ],
)
def test_inputs_that_do_not_match_forward_are_refused(texts: list[str], words: str) -> None:
    assert words in refusal(TwoInputs(), *texts)


def test_an_input_that_the_model_cannot_run_on_is_refused_with_shape_and_reason() -> None:
    message = refusal(Classifier(), "1x1x30x30")
    for words in ("1x1x30x30", "RuntimeError: mat1 and mat2", "--input"):
        assert words in message


def test_what_is_asked_wins_over_what_came_with_the_model() -> None:
    loaded = ExampleInputs((torch.ones(1, 3, 16, 16),), {})
    module = nn.Conv2d(3, 4, 3)
    assert example_inputs(module, specs("1x3x9x9"), loaded)[0].args[0].shape[-1] == 9
    assert example_inputs(module, (), loaded) == (loaded, ())
    bad = ExampleInputs((torch.ones(1, 4, 16, 16),), {})
    assert "came with it" in refusal(module, loaded=bad)


@pytest.mark.parametrize("name", ["default_cfg", "pretrained_cfg"])
def test_timms_configuration_gives_the_shape(name: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    setattr(module, name, {"input_size": (3, 40, 48)})
    inputs, remarks = example_inputs(module)
    assert inputs.args[0].shape == (1, 3, 40, 48)
    assert remarks == (f"input assumed 1x3x40x48 (from {name}): give --input to change it",)


def test_a_configuration_that_fails_gives_way_to_the_first_layer() -> None:
    module = Classifier()
    module.default_cfg = {"input_size": (1, 32, 32)}
    inputs, remarks = example_inputs(module)
    assert inputs.args[0].shape == (1, 1, 28, 28)
    assert "first layer 0" in remarks[0]


def test_lightnings_and_transformers_examples_are_used_as_they_are() -> None:
    lightning = nn.Linear(4, 2)
    lightning.example_input_array = torch.full((3, 4), 7.0)
    assert torch.equal(example_inputs(lightning)[0].args[0], lightning.example_input_array)
    transformer = TwoInputs()
    transformer.dummy_inputs = {
        "mask": torch.ones(1),
        "image": torch.ones(1, 3, 8, 8),
        "scale": torch.ones(1),
    }
    inputs, remarks = example_inputs(transformer)
    assert [tuple(a.shape) for a in inputs.args] == [(1, 3, 8, 8), (1,)]
    assert list(inputs.kwargs) == ["scale"]
    assert "dummy_inputs" in remarks[0]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1800, 5)), (1, 3, 32, 32)),
        (Classifier(), (1, 1, 28, 28)),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (1, 12)),
    ],
)
def test_the_first_layer_gives_a_shape_that_runs(module: nn.Module, shape: tuple[int, ...]) -> None:
    inputs, remarks = example_inputs(module)
    assert tuple(inputs.args[0].shape) == shape
    assert describe(inputs) in remarks[0]
    assert "give --input" in remarks[0]


@pytest.mark.parametrize(
    ("module", "asked"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "1x3xNxN"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "1x1xNxN"),
        (nn.Conv1d(2, 4, 3), "1x2xN"),
        (nn.Conv3d(1, 1, 3), "1x1xNxNxN"),
        (nn.ConvTranspose2d(16, 4, 4), "1x16xNxN"),
        (nn.Embedding(50, 4), "1xN:int64"),
        (nn.GRU(6, 4, batch_first=True), "1xNx6"),
    ],
)
def test_a_size_that_nothing_confirms_is_not_guessed(module: nn.Module, asked: str) -> None:
    """A network for 8x8 digits was priced, and pruned, at 224x224."""
    assert f"--input {asked}" in refusal(module)


def test_a_library_of_classifiers_confirms_its_convention() -> None:
    kind = type("ResNet", (nn.Sequential,), {"__module__": "torchvision.models.resnet"})
    inputs, _ = example_inputs(kind(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)))
    assert inputs.args[0].shape == (1, 3, 224, 224)


def test_a_sample_of_the_data_confirms_a_size() -> None:
    seen = ExampleInputs((torch.ones(1, 3, 20, 24),), {})
    inputs, remarks = example_inputs(nn.Conv2d(3, 4, 3), seen=seen)
    assert inputs is seen and "--data" in remarks[0]


class Observing(nn.Module):
    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__()
        self.names, self.layer = names, nn.Linear(4, 2)

    def forward(self, observation: Any) -> Any:
        a, b = (observation[name] for name in self.names)
        return self.layer(a) + self.layer(b)


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (("observation.state", "observation.goal"), ("observation.state", "observation.goal")),
        (("state", "goal"), ("observation.state", "observation.goal")),
        ((0, 1), ("observation[0]", "observation[1]")),
    ],
)
def test_names_lead_into_dicts_and_lists(names: Any, texts: Any) -> None:
    inputs, _ = example_inputs(Observing(names), specs(*(f"{text}=1x4" for text in texts)))
    assert len(inputs.tensors) == 2
    with pytest.raises(UserError, match="forward takes observation"):
        example_inputs(Observing(names), specs("nose.a=1x4", "nose.b=1x4"))


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 4), 7, np.float32))
    inputs, _ = example_inputs(nn.Linear(4, 2), specs(str(tmp_path / "x.npy")))
    assert torch.equal(inputs.args[0], torch.full((2, 4), 7.0))
    Image.new("RGB", (6, 5), (255, 0, 0)).save(tmp_path / "x.png")
    inputs, _ = example_inputs(nn.Conv2d(3, 2, 1), specs(f"input={tmp_path / 'x.png'}"))
    assert inputs.args[0].shape == (1, 3, 5, 6) and float(inputs.args[0].max()) == 1.0


def test_the_remark_names_the_layer() -> None:
    module = nn.Sequential()
    module.add_module("stem", nn.Linear(3, 4))
    assert "from the first layer stem" in example_inputs(module)[1][0]


def test_a_model_that_runs_on_nothing_tried_asks_for_input() -> None:
    fussy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3, 3))
    for words in ("1x3x224x224", "RuntimeError", "--input"):
        assert words in refusal(fussy)
    assert "--input" in refusal(nn.ReLU())


def test_trying_inputs_leaves_statistics_and_modes_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    module[0].eval()
    example_inputs(module, specs("1x3x8x8"))
    assert [m.training for m in module] == [False, True]
    assert int(module[1].num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("text", "shape", "free"),
    [
        ("1x3xHxW=64..512", (1, 3, 64, 64), "H 64..512, W 64..512"),
        ("1x3xHxW=H=64..512,W=32..96@48", (1, 3, 64, 48), "H 64..512, W 32..96"),
        ("x=1x3xSxS=64..512@224", (1, 3, 224, 224), "S 64..512"),
        ("ids=BxT=T=4..:int64", (1, 4), "T 4..up"),
    ],
)
def test_letters_are_free_sizes(text: str, shape: tuple[int, ...], free: str) -> None:
    class Any1(nn.Module):
        def forward(self, x: Tensor | None = None, ids: Tensor | None = None) -> Any:
            return x if ids is None else ids

    found, _ = example_inputs(Any1(), parse_inputs([text]))
    (tensor,) = found.tensors
    assert tuple(tensor.shape) == shape and str(found.free) == free


def test_a_letter_is_one_size_in_all_inputs() -> None:
    class Masked(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return ids * mask

    found, _ = example_inputs(Masked(), specs("mask=1xT:bool", "ids=1xT=4..64@8:int64"))
    assert [tuple(t.shape) for t in found.tensors] == [(1, 8), (1, 8)]
    assert found.free.places == ({1: "T"}, {1: "T"})


@pytest.mark.parametrize(
    "texts",
    [
        *(["1xT"], ["1xT=4"], ["1xT=8..4"], ["1xT=4..8@9"], ["1xT=S=4..8"], ["1xT=4..8,4..9"]),
        *(["1x4=4..8,T=1..2"], ["1xT=0..8"], ["1xTx=4..8"], ["a=1xT=4..8", "b=1xT=4..9"]),
        ["1xT=4..99999999999"[:-2] + "@9999999999"],
    ],
)
def test_what_is_no_range_is_refused_in_one_line(texts: list[str]) -> None:
    with pytest.raises(UserError, match="--input") as caught:
        parse_inputs(texts)
    assert "\n" not in str(caught.value)


def test_a_programs_own_free_sizes_stay_free_at_another_size() -> None:
    free = FreeSizes(({1: "length"},), {"length": FreeSize(4, 32)})
    loaded = ExampleInputs((torch.zeros(1, 8),), {}).leaving(free)
    inside, _ = example_inputs(nn.Identity(), specs("1x16"), loaded)
    outside, _ = example_inputs(nn.Identity(), specs("1x64"), loaded)
    assert inside.free == free and not outside.free


@pytest.mark.parametrize("texts", [["1xT=8..16"], ["1xT=2..16", "1x4"], ["1x3xT=2..16"], ["1x5"]])
def test_free_sizes_that_do_not_fit_the_examples_are_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match="free_sizes"):
        leaving_free(ExampleInputs((torch.zeros(1, 4),), {}), texts)


def test_a_letter_that_is_first_in_one_input_and_stands_in_all_is_the_batch() -> None:
    class Joined(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return x + h[0]

    found, _ = example_inputs(Joined(), specs("Bx4", "2xBx4"))
    assert found.free.places == ({0: BATCH}, {1: BATCH}) and found.batch == 1


@pytest.mark.parametrize(("said", "size"), [(96, (96, 96)), ([64, 96], (64, 96))])
def test_a_size_that_training_had_is_taken(said: Any, size: tuple[int, int]) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    module.args = {"imgsz": said}  # type: ignore[assignment]
    inputs, remarks = example_inputs(module, [], None)
    assert inputs.tensors[0].shape == (1, 3, *size)
    assert "its training's imgsz" in remarks[0]
