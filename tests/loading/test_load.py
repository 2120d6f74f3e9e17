"""Loading: every form a model comes in, and one clear line for everything that isn't one."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.core.errors import UserError
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.loading.as_used import as_deployed
from edgeprune.loading.load import load
from edgeprune.loading.safe_pickle import harmless

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(3, width)
    def forward(self, x):
        return self.fc(x)

def wide(): return Net(8)
def with_inputs(): return Net(), torch.ones(1, 3)
def wrapped(): return nn.DataParallel(Net())
def needs_argument(size): return Net(size)
def raises(): raise ValueError("no weights here\\nsecond line")
def number(): return 3
def empty(): return nn.ReLU()
def lazy(): return nn.LazyLinear(3)
built = Net()
constant = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh current directory with nets.py; imports from it are forgotten afterwards."""
    (tmp_path / "nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name == "nets" or name.startswith(("edgeprune_file_", "broken", "gone")):
            del sys.modules[name]


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))


def refusal(spec: Any, **options: Any) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(UserError) as caught:
        load(str(spec), **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


class Marks:
    """Pickles as os.system("touch …")."""

    def __init__(self, marker: Path, call: Any = os.system) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self) -> Any:
        return self.call, (f"touch {self.marker}",)


# Pickles ----------------------------------------------------------------------------------------


def test_a_pickled_module_loads_without_trust_in_eval_mode(tmp_path: Path) -> None:
    model = small()
    model[0].weight.requires_grad = False
    loaded = load(str(save(model, tmp_path / "net.pt")))
    assert (loaded.name, loaded.source, loaded.remarks) == ("net", "pickle", ())
    assert not any(m.training for m in loaded.module.modules())
    assert [p.requires_grad for p in loaded.module.parameters()] == [False, True, True, True]
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.module(x), model.eval()(x))


def test_functions_partials_and_plain_values_in_a_module_need_no_trust(tmp_path: Path) -> None:
    model = nn.TransformerEncoderLayer(8, 2, activation=nn.functional.gelu)
    model.extras = OrderedDict(p=partial(nn.LayerNorm, eps=1e-6), s={1}, c=slice(1), t=torch.int8)
    loaded = load(str(save(model, tmp_path / "net.pt"))).module
    assert loaded.activation is nn.functional.gelu
    assert loaded.extras["p"](3).eps == 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_it_is_said(tmp_path: Path, dtype: torch.dtype) -> None:
    loaded = load(str(save(small().to(dtype), tmp_path / "net.pt")))
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert loaded.module[1].num_batches_tracked.dtype == torch.int64
    assert loaded.remarks == (f"converted from {str(dtype)[6:]} to float32",)


def test_a_module_in_a_checkpoint_is_taken_and_it_is_said(tmp_path: Path) -> None:
    loaded = load(str(save({"model": small(), "epoch": 3, "ema": None}, tmp_path / "c.pt")))
    assert isinstance(loaded.module, nn.Sequential)
    assert "'model'" in loaded.remarks[0]


def test_a_pickle_that_names_os_system_is_refused_and_not_run(tmp_path: Path) -> None:
    model = small()
    marker = tmp_path / "marker"
    model.extra = Marks(marker)
    message = refusal(save(model, tmp_path / "net.pt"))
    assert f"{os.system.__module__}.system" in message
    assert "--trust" in message
    assert not marker.exists()
    load(str(tmp_path / "net.pt"), trust=True)
    assert marker.exists()  # so the file would have run it


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_pickle_that_names_os_system_is_refused_and_not_run(
    tmp_path: Path, protocol: int
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "net.pt").write_bytes(pickle.dumps(Marks(marker), protocol=protocol))
    refusal(tmp_path / "net.pt")
    torch.save(Marks(marker), tmp_path / "zip.pt", pickle_protocol=protocol)
    refusal(tmp_path / "zip.pt")
    torch.save(Marks(marker), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refusal(tmp_path / "old.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.getattr",
        "builtins.__import__",
        "torch.load",
        "torch.serialization.load",
        "torch.hub.load",
        "torch.utils.data.DataLoader",
        "torch.utils.cpp_extension.load",
        "torch.jit._script.RecursiveScriptModule",
        "torch.fx.graph_module.GraphModule",
        "torch.fx.graph_module.reduce_graph_module",
        "torch.nn.functional.importlib",
        "torch.nn.functional.warnings",
        "torch.nn.functional.torch",
        "torch.nn.functional.boolean_dispatch",
        "torch.nn.modules.module.torch",
        "torch.nn.modules.module.register_module_forward_hook",
        "torch.nn.modules.Module.load_state_dict",
        "torch.nn.modules.nowhere.Layer",
        "torch.nnx.Linear",
        "my_models.Net",
        "__main__.Net",
        "Net",
        "",
    ],
)
def test_what_could_run_code_is_not_harmless(name: str) -> None:
    assert harmless(name) is None


def test_carriers_of_code_and_methods_are_refused_in_an_allowed_home_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = "torchvision.ops.imagined"
    module: Any = types.ModuleType(home)
    body = {"__module__": home}
    module.Layer = type("Layer", (nn.Module,), {**body, "read": lambda self: None})
    module.Layer.read.__module__ = home
    module.Layer.read.__qualname__ = "Layer.read"
    module.read = module.Layer.read
    module.Graph = type("Graph", (torch.fx.GraphModule,), body)
    module.Script = type("Script", (torch.jit.ScriptModule,), body)
    module.Other = type("Other", (), body)
    monkeypatch.setitem(sys.modules, home, module)
    assert harmless(f"{home}.Layer") is module.Layer
    for name in ("read", "Graph", "Script", "Other"):
        assert harmless(f"{home}.{name}") is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("torch.nn.modules.linear.Linear", nn.Linear),
        ("torch.nn.functional.relu", nn.functional.relu),
        ("torch._C._nn.gelu", nn.functional.gelu),
        ("functools.partial", partial),
        ("builtins.slice", slice),
        ("torch.dtype", torch.dtype),
    ],
)
def test_layers_tensor_functions_and_plain_values_are_harmless(name: str, found: Any) -> None:
    assert harmless(name) is found


def test_at_most_five_offending_names_are_listed_with_how_many_more(tmp_path: Path) -> None:
    model = small()
    calls = [os.system, os.popen, os.mkdir, os.remove, os.rmdir, os.chmod, os.execv]
    model.extra = [Marks(tmp_path / "marker", call) for call in calls]
    message = refusal(save(model, tmp_path / "net.pt"))
    assert "and 2 more" in message
    assert message.count("posix.") + message.count("os.popen") == 5


def test_the_users_own_class_needs_trust_and_the_current_directory(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    import nets  # type: ignore[import-not-found]

    save(nets.Net(), folder / "own.pt")
    sys.path.remove(str(folder))
    del sys.modules["nets"]
    message = refusal("own.pt")
    assert "nets.Net" in message
    assert "--trust" in message
    loaded = load("own.pt", trust=True)
    assert loaded.source == "pickle"
    assert type(loaded.module).__name__ == "Net"


def test_a_trusted_class_that_cannot_be_imported_is_named(folder: Path) -> None:
    (folder / "gone.py").write_text(FACTORY)
    sys.path.insert(0, str(folder))
    import gone  # type: ignore[import-not-found]

    save(gone.Net(), folder / "own.pt")
    del sys.modules["gone"]
    (folder / "gone.py").unlink()
    message = refusal("own.pt", trust=True)
    assert "needs gone" in message
    assert "PYTHONPATH" in message


def test_a_trusted_class_of_the_script_that_saved_it_is_named(folder: Path) -> None:
    data = io.BytesIO()
    torch.save(small(), data)
    renamed = folder / "main.pt"
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(renamed, "w") as new:
        for record in old.namelist():
            content = old.read(record)
            name = b"ctorch.nn.modules.container\nSequential"
            new.writestr(record, content.replace(name, b"c__main__\nMyNet"))
    message = refusal(renamed, trust=True)
    assert "__main__.MyNet" in message
    assert "--arch SCRIPT.py:MyNet" in message


# State dicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 1},
        lambda w: {"model": w, "ema": {"fc.weight": torch.zeros(1)}},
        lambda w: {"model_state_dict": w},
        lambda w: {f"module.{k}": v for k, v in w.items()},
        lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}},
    ],
)
def test_a_state_dict_fills_the_model_that_arch_builds(folder: Path, wrap: Any) -> None:
    weights = nn.Linear(3, 8).state_dict()
    path = save(wrap({f"fc.{k}": v for k, v in weights.items()}), folder / "weights.pth")
    loaded = load(str(path), arch="nets.py:wide")
    assert (loaded.name, loaded.source) == ("weights", "state dict")
    assert torch.equal(loaded.module.fc.weight, weights["weight"])


def test_a_half_precision_state_dict_is_said_to_be_converted(folder: Path) -> None:
    path = save(
        {"fc." + k: v for k, v in nn.Linear(3, 8).half().state_dict().items()}, folder / "w"
    )
    loaded = load(str(path), arch="nets:wide")
    assert loaded.module.fc.weight.dtype == torch.float32
    assert "float16" in loaded.remarks[0]


def test_a_state_dict_without_arch_asks_for_it(tmp_path: Path) -> None:
    assert "--arch" in refusal(save(small().state_dict(), tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"fc.weight": torch.zeros(8, 3)}, ["1 missing", "fc.bias"]),
        (
            {"fc.weight": torch.zeros(8, 3), "fc.bias": torch.zeros(8), "head.w": torch.zeros(1)},
            ["1 unexpected", "head.w"],
        ),
        (
            {"fc.weight": torch.zeros(4, 3), "fc.bias": torch.zeros(8)},
            ["1 different", "fc.weight is 4x3 in the file and 8x3 in the model"],
        ),
        ({f"a{i}": torch.zeros(2) for i in range(9)}, ["2 missing", "9 unexpected", "a2, …"]),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(
    folder: Path, weights: Any, words: list[str]
) -> None:
    message = refusal(save(weights, folder / "w.pt"), arch="nets.py:wide")
    for word in words:
        assert word in message


# Factories --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["nets:wide", "nets.py:wide", "nets:Net", "nets:built"])
def test_a_function_a_class_and_a_module_are_factories(folder: Path, spec: str) -> None:
    loaded = load(spec)
    assert (loaded.name, loaded.source) == (spec.split(":")[1], "factory")
    assert type(loaded.module).__name__ == "Net"
    assert not loaded.module.training


def test_a_factory_may_return_example_inputs(folder: Path) -> None:
    loaded = load("nets:with_inputs")
    assert loaded.example_inputs is not None
    assert torch.equal(loaded.example_inputs.args[0], torch.ones(1, 3))


def test_a_wrapper_for_several_devices_is_taken_off(folder: Path) -> None:
    assert type(load("nets:wrapped").module).__name__ == "Net"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere.at_all:build", "no module named 'nowhere'"),
        ("nowhere.py:build", "no file nowhere.py"),
        ("nets:nothing", "has no 'nothing'"),
        ("nets:raises", "ValueError: no weights here"),
        ("nets:needs_argument", "called without arguments"),
        ("nets:number", "returned a int"),
        ("nets:constant", "a function is needed"),
        ("nets:empty", "no parameters"),
        ("nets:lazy", "parameters without values"),
        ("nets:", "names nothing"),
        ("nets:a b", "names nothing"),
    ],
)
def test_a_factory_that_builds_no_model_is_refused(folder: Path, spec: str, words: str) -> None:
    assert words in refusal(spec)


@pytest.mark.parametrize("code", ["1 / 0", "import not_there", "def broken(:", "exit(3)"])
def test_a_file_that_does_not_run_is_refused(folder: Path, code: str) -> None:
    (folder / "broken.py").write_text(code)
    assert "broken.py can't be run" in refusal("broken.py:build")
    assert "broken can't be imported" in refusal("broken:build")


def test_files_of_one_name_are_two_modules(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other/nets.py").write_text(FACTORY.replace("Net(8)", "Net(5)"))
    assert load("nets.py:wide").module.fc.out_features == 8
    assert load("other/nets.py:wide").module.fc.out_features == 5
    (folder / "json.py").write_text(FACTORY)
    assert load("json.py:wide").module.fc.out_features == 8
    assert hasattr(sys.modules["json"], "dumps")


# Programs ---------------------------------------------------------------------------------------


def program(path: Path, training: bool = False, dynamic: bool = True) -> nn.Module:
    model = nn.Sequential(small(), nn.Flatten(1), nn.Linear(4 * 36, 5)).train(training)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    exported = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    path.write_bytes(buffer.getvalue())
    return model.eval()


def test_a_program_brings_its_inputs_and_traces_with_a_dynamic_batch(tmp_path: Path) -> None:
    model = program(tmp_path / "net.pt2")
    loaded = load(str(tmp_path / "net.pt2"))
    assert (loaded.name, loaded.source) == ("net", "program")
    assert loaded.example_inputs is not None
    # The example of two that capturing took is cut to the one that a device runs, and it is said.
    assert loaded.example_inputs.args[0].shape == (1, 3, 8, 8)
    assert "one sample" in loaded.remarks[0]
    traced = trace(loaded.module, loaded.example_inputs)
    assert traced.dynamic_batch
    x = torch.randn(5, 3, 8, 8)
    assert torch.allclose(traced.graph_module(x), model(x), atol=1e-6)


def test_a_program_under_another_name_is_found_by_its_content(tmp_path: Path) -> None:
    program(tmp_path / "net.pt", dynamic=False)
    loaded = load(str(tmp_path / "net.pt"))
    assert loaded.source == "program"
    trace(loaded.module, loaded.example_inputs or ExampleInputs((), {}))


def test_a_program_captured_in_training_mode_is_set_to_evaluation(tmp_path: Path) -> None:
    model = program(tmp_path / "net.pt2", training=True)
    loaded = load(str(tmp_path / "net.pt2"))
    assert "training mode" in loaded.remarks[0]
    x = torch.randn(5, 3, 8, 8)
    assert torch.allclose(loaded.module(x), model(x), atol=1e-6)
    assert torch.allclose(loaded.module(x), model(x), atol=1e-6)


def rewritten(path: Path, record: str, change: Any) -> Path:
    """The program with one record changed, or added where there is none."""
    changed = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name == f"{root}/{record}" else content)
        if f"{root}/{record}" not in old.namelist():
            new.writestr(f"{root}/{record}", change(b""))
    return changed


def test_a_program_with_native_code_or_foreign_objects_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "net.pt2")
    for record in ("data/aotinductor/model/model.so", "data/constants/opaque_obj_0"):
        message = refusal(rewritten(tmp_path / "net.pt2", record, lambda _: b"x"))
        assert record in message
        assert "--trust" in message


def test_a_program_that_calls_or_evaluates_anything_else_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "net.pt2")
    changes = [
        (b"torch.ops.aten.relu.default", b"torch.hub.load"),
        (b'{"as_tensor": {"name": "input"}}', b'{"as_tensor": {"name": "x=exec(1)"}}'),
        (b"Symbol('s", b"__import__('os').system('s"),
    ]
    for old, new in changes:

        def change(text: bytes, old: bytes = old, new: bytes = new) -> bytes:
            assert old in text
            return text.replace(old, new)

        message = refusal(rewritten(tmp_path / "net.pt2", "models/model.json", change))
        assert "--trust" in message


def test_a_pickle_inside_a_program_is_not_run(tmp_path: Path) -> None:
    program(tmp_path / "net.pt2")
    data = io.BytesIO()
    torch.save(Marks(tmp_path / "marker"), data)
    record = "data/sample_inputs/model.pt"
    path = rewritten(tmp_path / "net.pt2", record, lambda _: data.getvalue())
    refusal(path)
    assert not (tmp_path / "marker").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    with pytest.raises(UserError):
        load(str(path), trust=True)
    assert (tmp_path / "marker").exists()  # so torch.export.load would have run it


# Everything else --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.pt", b"hello, I am a text\nof two lines\n", "isn't a model"),
        ("empty.pt", b"", "is empty"),
        ("cut.pt", b"PK\x03\x04 and then nothing", "cut short"),
        ("net.onnx", b"\x08\x07", "ONNX"),
        ("net.safetensors", b"\x08\x07", "safetensors"),
        ("net.h5", b"\x08\x07", "not a PyTorch file"),
        ("build.py", b"def net(): ...", "name the function"),
        ("list.pt", pickle.dumps([1, 2]), "isn't a model"),
    ],
)
def test_a_file_that_holds_no_model_is_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)
    assert words in refusal(tmp_path / name, trust=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "holds a dict"),
        ({}, "holds a dict"),
        (torch.zeros(3), "holds a Tensor"),
        (nn.ReLU(), "no parameters"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    assert words in refusal(save(content, tmp_path / "net.pt"))


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = save(small(), tmp_path / "net.pt")
    path.write_bytes(path.read_bytes()[:-300])
    assert "cut short" in refusal(path)


def test_another_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as file:
        file.writestr("word/document.xml", "<xml/>")
    assert "isn't a model" in refusal(tmp_path / "net.pt")


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "net.pt")
    assert "is a folder without" in refusal(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "net.pt"))
    assert "TorchScript" in refusal(tmp_path / "net.pt")


def test_a_whole_model_in_the_old_format_is_refused_and_its_weights_are_not(folder: Path) -> None:
    old = {"_use_new_zipfile_serialization": False}
    torch.save(small(), folder / "net.pt", **old)
    assert "old format" in refusal("net.pt")
    torch.save({"fc." + k: v for k, v in nn.Linear(3, 8).state_dict().items()}, "w.pt", **old)
    assert load("w.pt", arch="nets:wide").source == "state dict"


def test_an_arch_that_was_not_needed_is_remarked(tmp_path: Path) -> None:
    loaded = load(str(save(small(), tmp_path / "net.pt")), arch="nets:wide")
    assert "wasn't needed" in loaded.remarks[0]


def test_a_torchvision_without_its_operators_is_said_to_mismatch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("edgeprune.loading.safe_pickle.importlib.import_module", fails)
    with pytest.raises(UserError, match="install a torchvision that matches your torch"):
        harmless("torchvision.models.resnet.ResNet")


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr("edgeprune.loading.safe_pickle.importlib.import_module", fails)
    with pytest.raises(UserError, match="pip install timm"):
        harmless("timm.models.resnet.ResNet")


def test_a_programs_free_sizes_are_kept_with_their_ranges(tmp_path: Path) -> None:
    dim = torch.export.Dim
    free = {0: dim("b"), 2: dim("h", min=8, max=64), 3: 4 * dim("w", min=2, max=16)}
    net = nn.Conv2d(1, 4, 3)
    made = torch.export.export(net, (torch.rand(2, 1, 16, 12),), dynamic_shapes=(free,))
    torch.export.save(made, tmp_path / "free.pt2")
    inputs = load(str(tmp_path / "free.pt2")).example_inputs
    assert inputs is not None
    assert inputs.free.places == ({2: "height", 3: "width"},)
    assert str(inputs.free) == "height 8..64, width 8..64 in steps of 4"


def test_a_detectors_head_is_as_its_own_exporter_sets_it() -> None:
    class Detect(nn.Module):
        export = False

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

    theirs, mine = Detect(), Detect()
    Detect.__module__ = "ultralytics.nn.modules.head"
    (told,) = as_deployed(nn.Sequential(theirs))
    assert theirs.export is True and told.startswith("Detect set to export")
    Detect.__module__ = "robot.head"
    assert as_deployed(nn.Sequential(mine)) == () and mine.export is False
