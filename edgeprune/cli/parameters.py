"""What several commands take, as the command line names it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Profile = Annotated[
    str,
    Parameter(["--profile", "-p"], help="A shipped profile, a YAML file, or `host`: this machine."),
]
Inputs = Annotated[
    list[str] | None,
    Parameter(
        "--input",
        negative="",
        help="Input shape, once per input: 1x3x224x224, name=1x16:int64, 1x3xHxW=64..512 (free).",
    ),
]
Arch = Annotated[
    str | None, Parameter(help="package.module:function that builds the model of a state dict.")
]
Trust = Annotated[
    bool, Parameter(negative="", help="Run code from the file (pickles that name other classes).")
]
StepSeconds = Annotated[float, Parameter(help="Give up when tracing or coupling takes longer.")]
Latency = Annotated[
    float | None, Parameter("--latency-ms", help="Most milliseconds for one inference.")
]
Memory = Annotated[
    float | None, Parameter("--memory-mb", help="Most memory at run time, in MB (10^6 bytes).")
]
Size = Annotated[float | None, Parameter("--size-mb", help="Largest model file, in MB.")]
Cautious = Annotated[
    bool,
    Parameter(negative="", help="Hold budgets at the upper end of the predictions' intervals."),
]
Method = Annotated[
    str,
    Parameter(
        help="channel, layer or structured (both); zeros: weight (per layer), unstructured, 2:4."
    ),
]
Importance = Annotated[
    str, Parameter(help="Scoring criterion; auto takes the best that --data allows.")
]
Data = Annotated[
    str | None,
    Parameter(
        help="DataLoaders (module:function), a folder of images or of lerobot's data, or an .npz; "
        "`none`: make nothing up."
    ),
]
Eval = Annotated[
    str | None,
    Parameter(help="module:function(model) -> float, higher is better; or lerobot's data."),
]
Keep = Annotated[
    list[str] | None, Parameter(negative="", help="Layers that stay as they are (a glob; repeat).")
]
Steps = Annotated[int | None, Parameter(help="Steps on the way to the budgets.")]
Schedule = Annotated[str, Parameter(help="How far each step goes: linear, cubic or exponential.")]
Epochs = Annotated[int | None, Parameter(help="Fine-tuning epochs, in all.")]
Precision = Annotated[
    str,
    Parameter(help="Numeric type of the file: fp32, fp16, int8, or auto: int8 where it pays."),
]
Opset = Annotated[
    int | None,
    Parameter(help="ONNX opset of the file, 11 to 23 (what the profile's runtime reads)."),
]
Batch = Annotated[
    str | None,
    Parameter(help="The batch that the file takes: a number, or dynamic (what the runtime wants)."),
]
Device = Annotated[
    str,
    Parameter(help="Where scores, fits and training run: auto (a GPU if any), cpu, cuda[:N], mps."),
]
FreezeNoise = Annotated[
    bool,
    Parameter(negative="", help="Random numbers in forward become constants, drawn from --seed."),
]
NarrowState = Annotated[
    list[str] | None,
    Parameter(
        "--narrow-state",
        negative="",
        help="Inputs that come back as outputs (an LSTM's h,c), whose width may change: NAME or "
        "NAME=OUTPUT.",
    ),
]
Align = Annotated[
    str | None,
    Parameter(help="Passes of unlabelled alignment, or none; left out: as many as help."),
]
MinAgreement = Annotated[
    float | None,
    Parameter(
        "--min-agreement",
        help="Percent of agreement with the original below which the run ends with 5; 0: never.",
    ),
]
Output = Annotated[Path | None, Parameter(["--output", "-o"], help="Folder for the results.")]
SolverSeconds = Annotated[float, Parameter(help="Time limit of the solver.")]
Json = Annotated[
    bool, Parameter("--json", negative="", help="Print JSON on standard output and nothing else.")
]
SshOptions = Annotated[
    str,
    Parameter(
        env_var="EDGEPRUNE_SSH_OPTIONS",
        allow_leading_hyphen=True,
        help="Options for ssh itself, such as '-F my_config'.",
    ),
]
Debug = Annotated[bool, Parameter(negative="", help="Show a traceback for internal errors.")]
Quiet = Annotated[bool, Parameter(["--quiet", "-q"], negative="", help="Print only errors.")]

OtherRuntime = Annotated[
    str | None,
    Parameter(
        help="Try it in another runtime too (exit status 3 if that fails): openvino, ncnn, "
        "mnn, litert, rknn, or onnxruntime==1.16.3."
    ),
]
RunElsewhere = Annotated[
    str | None,
    Parameter(
        help="Run it on another device: ssh://user@host[:port][/folder][?python=PATH], or "
        "?trtexec=PATH for a profile of TensorRT."
    ),
]
