"""`edgeprune.load`: the folder of a run becomes a module that computes and trains."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from edgeprune.core.errors import UserError
from edgeprune.export.weights import load_weights
from edgeprune.graph.training_flags import TrainableGraph
from edgeprune.loading.load import LoadedModel
from edgeprune.loading.load import load as load_model
from edgeprune.pipeline.artifacts import RESULTS
from edgeprune.surgery.recipe import CannotRebuild, check_same


def load(folder: str | Path, into: nn.Module | None = None) -> nn.Module:
    """The pruned model that a run wrote to `folder`, in eval mode; `train()` and backward work.

    Without `into` it is a graph (torch.fx.GraphModule), which needs nothing of the user's code.
    into: an instance of the original class, built as it was before pruning, whatever its weights:
    a copy of it is returned, with the pruned widths and weights; `into` stays as it was.
    Either lies on the CPU.

    Raises UserError for a folder that isn't a run's, for a file that is damaged, and where the
    class can't take the widths or isn't the one that was pruned.
    """
    place = Path(folder).expanduser()
    program, weights = place / RESULTS["program"], place / RESULTS["weights"]
    if not program.is_file():
        raise UserError(
            f"{place} holds no {program.name}: give the folder that edgeprune wrote (its --output)"
        )
    loaded = load_model(str(program))
    assert isinstance(loaded.module, GraphModule)
    graph = TrainableGraph(loaded.module, loaded.module.graph).eval()
    if into is None:
        return graph
    if not weights.is_file():
        raise UserError(f"{place} holds no {weights.name}, from an older edgeprune: prune again")
    return _rebuilt(into, weights, loaded, graph)


def _rebuilt(into: nn.Module, weights: Path, loaded: LoadedModel, graph: GraphModule) -> nn.Module:
    tensors, name, recipe = load_weights(weights)
    if isinstance(recipe, str):
        raise UserError(
            f"{weights.parent}: the class {name} can't take the pruned widths ({recipe}): leave "
            "`into` out and train the graph"
        )
    try:
        # Of its own: the file that they lie in may be written anew.
        module = recipe.applied(into, {name: tensor.clone() for name, tensor in tensors.items()})
        if loaded.example_inputs is not None:
            check_same(module, graph, loaded.example_inputs)
    except CannotRebuild as reason:
        raise UserError(
            f"into: {type(into).__name__} isn't the {name} that was pruned ({reason}): give an "
            "instance built as the original was"
        ) from reason
    return module
