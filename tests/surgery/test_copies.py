"""A copy of a module holds no weights again, and what is written back lies where the graph's do."""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.surgery.copies import place_apart, sharing_weights, without_values
from edgeprune.surgery.recipe import recipe_for, weights_of
from edgeprune.surgery.write_back import write_back
from tests.pruning import pruned


class Tied(nn.Module):
    """Two layers of one weight, a norm with statistics, and a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.first.weight
        self.wide, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.spare = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.last(self.norm(self.wide(self.again(self.first(x)))))
        return made


def places(module: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in module.state_dict(keep_vars=True).values()}


def test_a_copy_shares_its_weights_and_nothing_else() -> None:
    module = Tied().train()
    made = sharing_weights(module)
    assert isinstance(made, Tied) and module.training and not made.training
    assert made.again.weight is made.first.weight is not module.first.weight
    for own, other in zip(made.parameters(), module.parameters(), strict=True):
        assert own.data_ptr() == other.data_ptr() and type(own) is type(other)
    made.norm.running_mean += 1
    made.wide.weight.data = torch.zeros(3, 8)
    assert not module.norm.running_mean.any() and module.wide.weight.shape == (16, 8)


def test_what_is_written_back_has_none_of_the_originals_weights() -> None:
    torch.manual_seed(0)
    module = Tied().eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = pruned(module, torch.randn(2, 8), seed=1)
    assert not found.plan.removes_nothing
    written = write_back(module, found.traced, found.coupling, found.plan, found.smaller).module
    assert isinstance(written, Tied) and written.again.weight is written.first.weight
    assert places(written).isdisjoint(places(module))
    with torch.no_grad():
        for tensor in written.state_dict(keep_vars=True).values():
            tensor.zero_()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_class_graph_and_file_hold_the_same_weights_once() -> None:
    torch.manual_seed(0)
    module = Tied().eval()
    found = pruned(module, torch.randn(2, 8), seed=1)
    written = write_back(module, found.traced, found.coupling, found.plan, found.smaller).module
    assert isinstance(written, Tied)
    graph = dict(found.smaller.named_parameters())
    own = dict(written.named_parameters())
    assert all(own[name].data_ptr() == graph[name].data_ptr() for name in own.keys() & graph.keys())
    tensors = weights_of(written)
    assert {tensor.data_ptr() for tensor in tensors.values()} == places(written)
    recipe = recipe_for(module, written, found.traced.example_inputs, tensors)
    assert places(recipe.applied(module, tensors)) == places(written)
    before = {name: tensor.clone() for name, tensor in found.smaller.state_dict().items()}
    place_apart(written)
    assert places(written).isdisjoint(places(found.smaller))
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.zero_()
    for name, tensor in found.smaller.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_parts_of_one_tensor_are_tensors_of_their_own_in_a_file() -> None:
    module = nn.Module()
    whole = torch.randn(2, 3)
    module.register_buffer("first", whole[0])
    module.register_buffer("second", whole[1])
    first, second = weights_of(module).values()
    assert torch.equal(first, whole[0]) and torch.equal(second, whole[1])
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


def test_what_has_lost_its_values_keeps_its_sizes() -> None:
    module = Tied()
    sizes = {name: (t.shape, t.dtype, t.nbytes) for name, t in module.state_dict().items()}
    without_values((*module.parameters(), *module.buffers()))
    left = module.state_dict()
    assert {name: (t.shape, t.dtype, t.nbytes) for name, t in left.items()} == sizes
    assert all(tensor.untyped_storage().nbytes() <= 8 for tensor in left.values())
