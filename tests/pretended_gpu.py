"""A device that isn't the CPU, on any machine: tensors that say they lie on `pretended:0`.

What it computes is what the CPU computes, and it refuses what a GPU refuses: operands of two
devices, indices that lie elsewhere, numpy. Without double precision, as Apple's GPUs are, it
refuses that too. PyTorch takes one such device a process (its PrivateUse1), for good, so whoever
uses it runs in a process of its own.

    python -m tests.pretended_gpu doubles|singles CASE …

prints what CASES give there, as JSON
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

NAME = "pretended"
_COPIES = ("aten::_to_copy", "aten::copy_")


class There(Tensor):
    """A tensor of the pretended device. raw: its values, on the CPU."""

    raw: Tensor
    doubles = True
    ran: ClassVar[Counter[str]] = Counter()

    @staticmethod
    def __new__(cls, raw: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    name, device = func._schema.name, kwargs.get("device")
    wrapped: dict[int, There] = {}
    on_cpu = False

    def raw(value: Any) -> Any:
        nonlocal on_cpu
        if isinstance(value, There):
            wrapped[id(value.raw)] = value
            return value.raw
        if isinstance(value, Tensor):
            on_cpu |= value.dim() > 0
        elif isinstance(value, list | tuple):
            return [raw(each) for each in value]
        return value

    raw_args, raw_kwargs = [raw(a) for a in args], {k: raw(v) for k, v in kwargs.items()}
    if wrapped and on_cpu and name not in _COPIES:
        raise RuntimeError(f"{name}: all tensors must be on one device, one is on the CPU")
    There.ran[name] += bool(wrapped)
    there = bool(wrapped) if device is None else torch.device(device).type == NAME
    if name == "aten::copy_":
        there = isinstance(args[0], There)
    if device is not None:
        raw_kwargs["device"] = torch.device("cpu")
    made = func(*raw_args, **raw_kwargs)
    if not there:
        return made

    def wrap(value: Any) -> Any:
        if isinstance(value, Tensor):  # what was written to comes back as it is
            return wrapped[id(value)] if id(value) in wrapped else _wrap(value)
        return type(value)(map(wrap, value)) if isinstance(value, list | tuple) else value

    return wrap(made)


def _wrap(tensor: Tensor) -> There:
    if tensor.dtype == torch.double and not There.doubles:
        raise TypeError(f"the device {NAME} has no double precision")
    return There(tensor)


def install(doubles: bool) -> Any:
    """Makes PyTorch and edgeprune know the device; returns what must be kept alive."""
    from torch.utils.backend_registration import (
        _DummyBackendModule,
        _setup_privateuseone_for_python_backend,
    )

    from edgeprune.pipeline import options
    from edgeprune.runtime import placement
    from edgeprune.solve import plan_search

    class Backend(_DummyBackendModule):  # type: ignore[misc]
        """With a state of random numbers, though none are drawn there."""

        def get_rng_state(self, device: Any = None) -> Tensor:
            return torch.zeros(1)

        def set_rng_state(self, state: Tensor, device: Any = None) -> None: ...

        def manual_seed_all(self, seed: int) -> None: ...

    There.doubles = doubles
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    options.checked_device = lambda name: name
    plan_search.WORK = 1.0  # as few plans as it ever tries
    if not doubles:
        placement._SINGLE = frozenset({NAME})
    return library


# -- cases -----------------------------------------------------------------------------------------


def _network(seed: int = 0) -> torch.nn.Module:
    from tests.pretended_networks import Mixed

    torch.manual_seed(seed)
    return Mixed().eval()


def _pruned(device: str, **options: Any) -> dict[str, Any]:
    import edgeprune

    There.ran.clear()
    result = edgeprune.prune(
        _network(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
        "raspberry-pi-4", device=device, **options,
    )  # fmt: skip
    report = result.report
    weights = result.module.state_dict()
    return {
        "device": report["device"],
        "ran": dict(There.ran),
        "seconds": report["seconds"],
        "widths": {g["name"]: g["after"] for g in report["groups"]},
        "home": sorted({str(t.device) for t in weights.values()}),
        "sums": {name: float(t.double().abs().sum()) for name, t in weights.items()},
        "agreement": report["agreement"],
        "metric": report["after"]["metric"],
    }


def _data() -> Any:
    from torch.utils.data import DataLoader, TensorDataset

    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 3, 16, 16, generator=generator)
    with torch.no_grad():
        y = _network()(x).argmax(1)
    return DataLoader(TensorDataset(x, y), 16)


CASES: dict[str, Callable[[str], dict[str, Any]]] = {
    "data": lambda d: _pruned(d, rate=0.5, data=_data(), align=3),
    "none": lambda d: _pruned(d, rate=0.4, align="none"),
    "gradient": lambda d: _pruned(d, rate=0.4, data=_data(), importance="gradient", align="none"),
    "weight": lambda d: _pruned(
        d, rate=0.5, data=_data(), method="weight", importance="saliency", align="none"
    ),
}


def main() -> None:
    """Every case named, on the device."""
    doubles, *names = sys.argv[1:]
    kept = install(doubles == "doubles")
    found = {name: CASES[name](NAME) for name in names}
    assert kept is not None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
