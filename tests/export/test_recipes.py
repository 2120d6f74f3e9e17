"""What `export/` shows people to do works as it stands there, wherever it can be tried."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeprune.core.resources import export_folder
from edgeprune.runtime.others.run import PYTHON_VARIABLE
from tests.runtime.test_others import convolutional

RECIPES = export_folder() / "recipes"
CPP = export_folder() / "cpp"


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A folder with net.onnx and input.npy, and what onnxruntime makes of them."""
    model = convolutional(tmp_path)
    value = np.random.default_rng(1).standard_normal((1, 3, 32, 32), np.float32)
    np.save(tmp_path / "input.npy", value)
    value.tofile(tmp_path / "input.bin")
    (right,) = onnxruntime.InferenceSession(str(model)).run(None, {"x": value})
    return model, tmp_path / "input.npy", right.ravel()


def python_with(*modules: str) -> str:
    """The first Python that has them. Skips the test where none does."""
    named = os.environ.get(PYTHON_VARIABLE, "").split(os.pathsep)
    test = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    for python in [each for each in named if each] or [sys.executable]:
        if subprocess.run([python, "-c", test, *modules], check=False).returncode == 0:
            return python
    pytest.skip(f"no Python here has {' and '.join(modules)}: see {PYTHON_VARIABLE}")


def ran(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def detector_module() -> Any:
    """export/recipes/detector.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("detector", RECIPES / "detector.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written_detector(path: Path, answer: np.ndarray) -> None:
    """A file that takes pictures of 64 x 96 and always answers the same."""
    x = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 64, 96])
    y = onnx.helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, answer.shape)
    nodes = [
        onnx.helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        onnx.helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        onnx.helper.make_node("Add", ["answer", "nothing"], ["output0"]),
    ]
    given = [
        onnx.numpy_helper.from_array(answer.astype(np.float32), "answer"),
        onnx.numpy_helper.from_array(np.float32(0), "zero"),
    ]
    graph = onnx.helper.make_graph(nodes, "detector", [x], [y], given)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


def test_a_detectors_boxes_come_in_the_pictures_own_pixels(tmp_path: Path) -> None:
    places = np.zeros((20, 4 + 3))
    places[0] = [48, 32, 40, 20, 0.9, 0.1, 0.0]  # middle, width and height in the input's pixels
    places[1] = [49, 32, 40, 20, 0.8, 0.1, 0.0]  # the same thing once more
    places[2] = [49, 32, 40, 20, 0.1, 0.7, 0.0]  # another class at the same place
    places[3] = [20, 20, 8, 8, 0.2, 0.0, 0.0]  # not sure enough
    frame = np.zeros((128, 128, 3), np.uint8)  # half as large in the input, with 16 beside it
    for answer in (places.T[None], places[None]):
        written_detector(tmp_path / "model.onnx", answer)
        detect = detector_module().Detector(str(tmp_path / "model.onnx"))
        found = detect(frame)
        np.testing.assert_allclose(found[:, 4:], [[0.9, 0], [0.7, 1]], atol=1e-6)
        np.testing.assert_allclose(found[0, :4], [24, 44, 104, 84], atol=1e-4)
    np.save(tmp_path / "picture.npy", frame)
    words = [str(tmp_path / name) for name in ("model.onnx", "picture.npy", "boxes.npy")]
    ran([sys.executable, str(RECIPES / "detector.py"), *words], tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "boxes.npy"), found)


def test_a_picture_is_resized_as_pillow_does() -> None:
    from PIL import Image

    frame = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(frame).resize((120, 160), Image.Resampling.BILINEAR))
    mine = detector_module().resized(frame, 160, 120)
    assert np.abs(mine.astype(int) - smooth.astype(int)).max() <= 1


def test_what_is_no_detectors_output_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not the output of a YOLO detector: \(1, 10\)"):
        detector_module().parts([np.zeros((1, 10))])


def commands(recipe: str) -> list[list[str]]:
    """The command lines in a recipe's docstring, without comments; one of several lines is one."""
    text = re.search(r'"""(.*?)"""', (RECIPES / recipe).read_text(encoding="utf-8"), re.DOTALL)
    assert text is not None
    joined = re.sub(r"\\\\\n\s+", "", text.group(1))
    lines = [line for line in joined.splitlines() if line.startswith("    ")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def numbers(said: str) -> np.ndarray:
    """The values of the first output that a recipe printed: the end of its last line."""
    (line,) = [line for line in said.splitlines() if line.rstrip().endswith("]")][-1:]
    return np.array([float(word) for word in line[line.rindex("[") + 1 : -1].split(",")])


def close(said: str, right: np.ndarray, tolerance: float = 1e-2) -> None:
    gap = np.abs(numbers(said) - right[:5]).max() / np.abs(right).max()
    assert gap < tolerance and re.search(r"\d ms", said), said


@pytest.mark.parametrize(
    ("recipe", "module"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino")]
)
def test_runtimes_that_read_the_file_itself(
    recipe: str, module: str, case: tuple[Path, Path, np.ndarray]
) -> None:
    model, given, right = case
    python = sys.executable if module == "onnxruntime" else python_with(module)
    script = str(RECIPES / f"run_{recipe}.py")
    close(ran([python, script, model.name, given.name], model.parent), right)


def test_ncnn(case: tuple[Path, Path, np.ndarray]) -> None:
    model, given, right = case
    python = python_with("ncnn", "pnnx")
    convert = next(words for words in commands("run_ncnn.py") if words[0] == "pnnx")
    program = Path(python).parent / "pnnx"
    shape = convert[2].replace("224", "32")
    ran([str(program), model.name, shape], model.parent)
    script = str(RECIPES / "run_ncnn.py")
    close(ran([python, script, "net.ncnn.param", given.name], model.parent), right)


def test_mnn(case: tuple[Path, Path, np.ndarray]) -> None:
    model, given, right = case
    python = python_with("MNN")
    convert = next(words for words in commands("run_mnn.py") if words[:2] == ["python", "-c"])
    ran([python, "-c", convert[2].replace("model.onnx", model.name)], model.parent)
    script = str(RECIPES / "run_mnn.py")
    close(ran([python, script, "model.mnn", given.name], model.parent), right)


def test_litert(case: tuple[Path, Path, np.ndarray]) -> None:
    model, given, right = case
    python = python_with("onnx2tf", "ai_edge_litert")
    convert = next(words for words in commands("run_litert.py") if words[0] == "onnx2tf")
    pictures = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
    np.save(model.parent / "calibration_image_sample_data_20x128x128x3_float32.npy", pictures)
    words = [word.replace("model.onnx", model.name) for word in convert[1:]]
    ran([str(Path(python).parent / "onnx2tf"), *words], model.parent)
    script = str(RECIPES / "run_litert.py")
    close(ran([python, script, "made/net_float32.tflite", given.name], model.parent), right)


def test_rknn(case: tuple[Path, Path, np.ndarray]) -> None:
    model, given, right = case
    python = python_with("rknn")
    script = str(RECIPES / "run_rknn.py")
    close(ran([python, script, model.name, given.name], model.parent), right, 5e-2)
    assert (model.parent / "model.rknn").stat().st_size > 0


def test_cpp(case: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    """It is built against the headers of a release, and against that release's library or, where
    there is none, this Python's, if that isn't older."""
    model, _, right = case
    if not shutil.which("cmake") or not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("needs cmake and a C++ compiler")
    root = os.environ.get("ONNXRUNTIME_ROOT", "")
    wheel = importlib.util.find_spec("onnxruntime")
    assert wheel is not None and wheel.origin is not None
    library = next((Path(wheel.origin).parent / "capi").glob("libonnxruntime.so.1*"), None)
    words = ["cmake", "-S", str(CPP), "-B", "build", f"-DONNXRUNTIME_ROOT={root}"]
    own = any((Path(root) / "lib").glob("libonnxruntime.so*")) if root else False
    if library is not None and not own:
        words.append(f"-DONNXRUNTIME_LIBRARY={library}")
    made = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "not found" in made.stderr:
        pytest.skip("onnxruntime's headers aren't here: ONNXRUNTIME_ROOT names a release's folder")
    assert made.returncode == 0, made.stderr
    ran(["cmake", "--build", "build"], tmp_path)
    program = str(tmp_path / "build" / "run_model")
    said = ran([program, str(model), "input.bin", "1"], tmp_path)
    assert "takes x 1x3x32x32" in said and "latency" in said
    found = re.search(r"gives y 1x5 (.*)", said)
    assert found is not None
    np.testing.assert_allclose([float(w) for w in found[1].split()], right, rtol=1e-3, atol=1e-4)
    wrong = subprocess.run([program, "none.onnx"], cwd=tmp_path, capture_output=True, check=False)
    assert wrong.returncode == 1 and b"none.onnx" in wrong.stderr


def test_what_travels_to_a_device_is_the_scripts_at_the_top() -> None:
    names = {path.name for path in export_folder().glob("*.py")}
    assert names == {"runner.py", "stopwatch.py", "microbench.py"}


def test_the_index_names_every_recipe() -> None:
    index = (export_folder() / "README.md").read_text(encoding="utf-8")
    shown = [*RECIPES.glob("*.py"), *RECIPES.glob("*.md"), CPP]
    missing = [str(p) for p in shown if str(p.relative_to(export_folder())) not in index]
    assert missing == []
