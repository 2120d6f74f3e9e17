"""A torch.export program is held against its whole schema before torch reads it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.loading.operators import is_allowed
from edgeprune.loading.program_schema import _is_guard, check_program, is_arithmetic


class Net(nn.Module):
    """Sizes, dicts, lists, keywords and an LSTM: what documents are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 6)
        self.rnn = nn.LSTM(6, 5, batch_first=True)
        self.conv = nn.Conv1d(5, 4, 3, padding="same")
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
        y = self.rnn(self.proj(x - self.mean))[0]
        z = self.conv(y.transpose(1, 2))
        z = torch.einsum("bct,b->bct", z, scale).reshape(x.shape[0], -1)
        return {"out": z, "more": (z.mean(1), [z * x.shape[0]])}


@cache
def saved() -> bytes:
    batch = torch.export.Dim("batch", min=2, max=100)
    program = torch.export.export(
        Net(),
        (torch.randn(3, 7, 4),),
        {"scale": torch.ones(3)},
        dynamic_shapes={"x": {0: batch}, "scale": {0: batch}},
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def archive() -> tuple[list[str], dict[str, Any]]:
    """Record names without their root, and the JSON documents."""
    with zipfile.ZipFile(io.BytesIO(saved())) as file:
        names = {n.partition("/")[2]: file.read(n) for n in file.namelist()}
    return list(names), {n: json.loads(c) for n, c in names.items() if n.endswith(".json")}


def check(records: list[str], documents: dict[str, Any]) -> None:
    check_program(records, {name: json.dumps(d).encode() for name, d in documents.items()})


def test_what_torch_writes_passes() -> None:
    check(*archive())


Change = Callable[[Any], None]


def model(change: Change) -> Change:
    return lambda documents: change(documents["models/model.json"])


def _graph(document: Any) -> Any:
    return document["graph_module"]["graph"]


def _spec(document: Any) -> Any:
    return document["graph_module"]["module_call_graph"][0]["signature"]


def _replaced(field: str, old: str, new: str) -> Change:
    def change(document: Any) -> None:
        spec = _spec(document)
        assert old in spec[field]
        spec[field] = spec[field].replace(old, new)

    return change


def _first_parameter(document: Any) -> Any:
    specs = document["graph_module"]["signature"]["input_specs"]
    return next(s["parameter"] for s in specs if "parameter" in s)


ENUM = '{"__enum__": true, "fqn": "antigravity:Fly", "name": "UP"}'
QUOTED = json.dumps(json.dumps([json.loads(ENUM)]))[1:-1]
HARMFUL: dict[str, Change] = {
    "a parameter's name is code": model(
        lambda d: _first_parameter(d).update(parameter_name='x", exec("1"), "')
    ),
    "a parameter's name leaves its module": model(
        lambda d: _first_parameter(d).update(parameter_name="a.__class__.b")
    ),
    "a tensor's key is code": model(
        lambda d: _graph(d)["tensor_values"].update(
            {"x=exec(1)": next(iter(_graph(d)["tensor_values"].values()))}
        )
    ),
    "a node's name is code": model(lambda d: _graph(d)["nodes"][0].update(name="x; exec(1)")),
    "an operator reads files": model(
        lambda d: _graph(d)["nodes"][0].update(target="torch.ops.aten.from_file.default")
    ),
    "an operator is any function": model(
        lambda d: _graph(d)["nodes"][0].update(target="torch.hub.load")
    ),
    "an argument is an object": model(
        lambda d: _graph(d)["nodes"][0]["inputs"][0].update(
            arg={"as_custom_obj": {"name": "x", "class_fqn": "os.system"}}
        )
    ),
    "a structure imports a module": model(_replaced("out_spec", "builtins.list", "antigravity.L")),
    "a structure's keys import one": model(
        lambda d: _spec(d).update(
            out_spec='[1, {"type": "builtins.dict", "context": "' + QUOTED + '", '
            '"children_spec": []}]'
        )
    ),
    "a keyword is code": model(_replaced("in_spec", "scale", "s=exec(1)")),
    "an argument's name is code": model(
        lambda d: _spec(d).update(forward_arg_names=["x", "y=exec(1)"])
    ),
    "a named tuple": model(
        lambda d: d["graph_module"].update(
            treespec_namedtuple_fields={"os.P": {"field_names": ["a"]}}
        )
    ),
    "a guard is code": model(lambda d: d.update(guards_code=["__import__('os').getpid() > 0"])),
    "a device is anything": model(
        lambda d: next(iter(_graph(d)["tensor_values"].values()))["device"].update(type="os")
    ),
    "a symbol's range is code": model(
        lambda d: d.update(range_constraints={"x)": {"min_val": 2, "max_val": 9}})
    ),
    "something the schema doesn't have": model(lambda d: d.update(hooks=["os.system"])),
    "a number is text": model(lambda d: d["schema_version"].update(major="8")),
    "a tensor of no size": model(
        lambda d: next(iter(_graph(d)["tensor_values"].values())).update(
            sizes=[{"as_int": 2**20}, {"as_int": 2**20}]
        )
    ),
    "weights lie elsewhere": lambda ds: ds["data/weights/model_weights_config.json"]["config"][
        "proj.weight"
    ].update(path_name="../../etc/passwd"),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_anything_else_is_refused(what: str) -> None:
    records, documents = archive()
    HARMFUL[what](documents)
    with pytest.raises(UserError):
        check(records, documents)


def test_every_text_is_checked() -> None:
    """Whatever text is put in a text's place, wherever that is: nothing with a quote, a bracket or
    a line's end and code in it goes through unless people alone read it."""
    records, documents = archive()
    places: list[tuple[Any, Any, tuple[str, ...]]] = []

    def collect(value: Any, path: tuple[str, ...]) -> None:
        pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        for key, part in pairs:
            if isinstance(part, str):
                places.append((value, key, (*path, str(key))))
            elif isinstance(part, dict | list):
                collect(part, (*path, str(key)))

    collect(documents, ())
    checked = 0
    for holder, key, path in places:
        if "metadata" in path:
            continue  # read by people: stack traces
        before = holder[key]
        holder[key] = "x\"), exec('1') #"
        with pytest.raises(UserError):
            check(records, documents)
        holder[key] = before
        checked += 1
        if checked > 150:
            break
    assert checked > 100


def test_records_of_native_code_are_refused() -> None:
    records, documents = archive()
    for record in (
        "data/aotinductor/model.so",
        "data/constants/opaque_obj_0",
        "models/../x.json/y",
    ):
        with pytest.raises(UserError, match="record"):
            check([*records, record], documents)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.conv2d.default",
        "torch.ops.aten.relu_.default",
        "torch.ops.aten.arange.default",
        "torch.ops.aten._to_copy.default",
        "torch.ops.aten.scaled_dot_product_attention.default",
        "torch.ops.aten.batch_norm.default",
        "torch.ops.aten.sym_size.int",
        "torch.ops.aten.add.Tensor",
        "torch.ops.aten.lstm.input",
        "torch.ops.aten._assert_tensor_metadata.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "_operator.mul",
        "math.ceil",
        "torch.sym_max",
    ],
)
def test_operators_of_tensors_and_sizes_are_allowed(target: str) -> None:
    assert is_allowed(target)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.load_library",
        "torch.ops.load_library.__call__",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten._sparse_csr_tensor_unsafe.default",
        "torch.ops.aten.no_such_thing.default",
        "torch.ops.aten.relu.out.x",
        "torch.ops.prim.Print.default",
        "torch.ops.image.read_file.default",
        "torch.ops.higher_order.call_torchbind",
        "torch.ops.c10d.send.default",
        "torch.ops.inductor.resize_storage_bytes_.default",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "torch.hub.load",
        "torch.load",
        "os.system",
        "math.__loader__",
    ],
)
def test_all_others_are_not(target: str) -> None:
    assert not is_allowed(target)


def test_sizes_are_told_from_code_and_stay_small() -> None:
    for text in (
        "Mul(Integer(2), Symbol('s77', positive=True, integer=True))",
        "2*s0 + 1",
        "Pow(Symbol('s0', integer=True), Integer(2))",
        "s0**2 // 4",
    ):
        assert is_arithmetic(text), text
    for text in (
        *("eval('1')", "().__class__", "Symbol('a b()')", "open(1)", "x[0]", "a b", "lambda: 0"),
        *("Lambda(x, x)", "Function('f')", "sympify('1')", "Symbol(name='x')", "'text'"),
        *("9**9**9**9", "Pow(Integer(9), Pow(Integer(9), Integer(9)))", "s0**s0", "1 << 99999"),
        *("9" * 3000, "10**19", f"Integer({2**70})", "(" * 500 + "1" + ")" * 500),
    ):
        assert not is_arithmetic(text), text


def test_guards_compare_sizes() -> None:
    assert _is_guard("L['x'].size()[1] == 7 and L['x'].stride()[0] >= 2*L['y'].size()[0]")
    for text in ("__import__('os')", "L['x'].__class__", "L['x'].size(1)", "open", "[1]", "f'{1}'"):
        assert not _is_guard(text)
