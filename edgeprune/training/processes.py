"""Lightning Fabric, set up for one process or for those that torchrun started."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

from edgeprune.core.errors import UserError
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.training_flags import is_batch_norm
from edgeprune.loading.import_spec import one_line
from edgeprune.runtime.devices import AUTO

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@contextmanager
def launched(precision: str, device: str = AUTO) -> Iterator[Fabric]:
    """Fabric on a device, by default an accelerator if there is one; under torchrun all its
    processes train together.

    Raises UserError if they can't be set up, as where there are fewer GPUs than processes.
    """
    logger = logging.getLogger("lightning_fabric")
    with warnings.catch_warnings():
        # Its advice concerns loops that its user wrote: here that is nobody's but ours.
        warnings.filterwarnings("ignore", module="lightning_fabric")
        try:
            import lightning_fabric

            level = logger.level
            logger.setLevel(logging.WARNING)
        except ImportError as error:
            raise UserError("training needs Lightning: pip install lightning-fabric") from error
        try:
            yield _launch(lightning_fabric, precision, device)
        finally:
            logger.setLevel(level)


def _launch(lightning_fabric: Any, precision: str, device: str) -> Fabric:
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    kind, _, number = device.partition(":")
    devices = [int(number)] if number else 1
    settings: dict[str, Any] = {"accelerator": kind, "precision": precision, "devices": devices}
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        settings["devices"] = here
        settings["num_nodes"] = int(os.environ["WORLD_SIZE"]) // here
        # Running statistics are averaged after each epoch instead: each process has seen others.
        settings["strategy"] = DDPStrategy(broadcast_buffers=False)
    else:  # a cluster's variables, such as SLURM's, don't say that there is more than this process
        settings["plugins"] = [LightningEnvironment()]
    try:
        fabric: Fabric = lightning_fabric.Fabric(**settings)
        fabric.launch()
    except Exception as error:
        raise UserError(f"training can't be set up here: {one_line(error)}") from error
    return fabric


def expect_unused(fabric: Fabric, some: bool) -> None:
    """Tells DDP whether steps may leave out parameters, before the model is set up: it waits for
    their gradients otherwise, and complains of the time that looking takes if there are none."""
    if fabric.world_size > 1:
        fabric.strategy._ddp_kwargs["find_unused_parameters"] = some  # type: ignore[attr-defined]


def average_statistics(fabric: Fabric, module: GraphModule) -> None:
    """Makes batch norms' running statistics the mean of all processes'."""
    if fabric.world_size == 1:
        return
    norms = [node for node in module.graph.nodes if is_batch_norm(node)]
    names = dict.fromkeys(str(node.args[i].target) for node in norms for i in (3, 4))
    for name in names:
        buffer = attribute(module, name)
        buffer.copy_(fabric.all_reduce(buffer.detach().clone(), reduce_op="mean"))
