"""pruned.safetensors: the smaller model's weights under the names of the user's class, and what an
instance of the class needs to hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.loading.checkpoint import read_safetensors
from edgeprune.surgery.recipe import CannotRebuild, Recipe, recipe_for, weights_of
from edgeprune.surgery.write_back import WrittenBack

#: The entry of the file's header that is ours.
_ENTRY = "edgeprune"


def save_weights(
    path: Path, original: nn.Module, written: WrittenBack, graph: nn.Module, inputs: ExampleInputs
) -> None:
    """Writes the weights; the header says how an instance of the class takes them, or why
    it can't.

    Any reader of safetensors reads the file. Where the class couldn't follow, the names are
    those of the graph, which are the class's too.
    """
    from safetensors.torch import save_file

    smaller = written.module if written.module is not None else graph
    tensors = weights_of(smaller)
    told: dict[str, Any] = {"class": type(original).__name__, "version": 1}
    try:
        if written.module is None:
            raise CannotRebuild(written.note)
        told["recipe"] = recipe_for(original, smaller, inputs, tensors).model_dump()
    except CannotRebuild as reason:
        told["why_not"] = str(reason)
    save_file(tensors, path, {"format": "pt", _ENTRY: json.dumps(told, sort_keys=True)})


def load_weights(path: Path) -> tuple[dict[str, Tensor], str, Recipe | str]:
    """The tensors, the name of the class that they are of, and the recipe or why there is none.

    Raises UserError for a file that is damaged or that edgeprune didn't write.
    """
    from safetensors import safe_open

    tensors = read_safetensors(path)
    with safe_open(str(path), "pt") as file:
        header = file.metadata() or {}
    try:
        told = json.loads(header[_ENTRY])
        found = told.get("why_not")
        recipe = str(found) if found is not None else Recipe.model_validate(told["recipe"])
        return tensors, str(told["class"]), recipe
    except (KeyError, ValueError, AttributeError) as error:  # pydantic's error is a ValueError
        raise UserError(
            f"{path} was not written by edgeprune, or by a newer one: prune again"
        ) from error
