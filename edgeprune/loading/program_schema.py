"""Whether a torch.export program, as it lies in its file, holds tensors and operators alone.

torch.export.load looks names up, evaluates expressions and writes source code from what it reads.
So before it does, the whole document is held against torch's own schema of it: nothing may stand
there that the schema doesn't have, and every text must be of the kind that its place allows. A
place without a rule allows no text at all.
"""

from __future__ import annotations

import ast
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import IntEnum
from math import prod
from typing import Any

from torch._export.serde import schema

from edgeprune.core.errors import UserError
from edgeprune.loading.operators import is_allowed

#: Bounds of a document: its length, how deep it nests, and the elements of a tensor in it.
LARGEST_DOCUMENT, DEEPEST, LARGEST_TENSOR = 256_000_000, 60, 2**33

# Records of a program's archive that hold no native code and no object but tensors.
_RECORDS = re.compile(
    r"models/[^/]+\.json"
    r"|data/(weights|sample_inputs|constants)/(weight_\d+|tensor_\d+|\w+_config\.json|\w+\.pt)"
    r"|archive_format|archive_version|version|byteorder|\.data/\w+|\.format_version"
    r"|\.storage_alignment|extra/\w+"
)

_NAME = re.compile(r"(?!__)[A-Za-z_]\w{0,199}")
_SIZE = re.compile(r"(\d{1,9}\*)?(?!__)[A-Za-z_]\w{0,199}")  # s77, or 4*s30
_QUALIFIED = re.compile(r"(?!__)\w[\w \-+/:@#]{0,199}(\.(?!__)\w[\w \-+/:@#]{0,199}){0,99}|")
_FREE = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f]{0,20000}")  # read by people alone
_WORD = re.compile(r"[\w .,;:+\-*/>()=']{0,500}")  # 'mean', an einsum's equation
_FILE = re.compile(r"\w{1,200}(\.\w{1,10})?")
_DEVICE = re.compile(r"cpu|cuda|mps|meta|xpu")

Rule = Callable[[str], bool]


def check_program(records: list[str], documents: Mapping[str, bytes]) -> None:
    """Raises UserError naming the first thing in a program that could run other code.

    records: the names in its archive; documents: its JSON files.
    """
    for record in records:
        if not _RECORDS.fullmatch(record):
            raise _refusal("the record", record)
    for name, text in documents.items():
        if len(text) > LARGEST_DOCUMENT:
            raise UserError(f"the program's {name} is larger than {LARGEST_DOCUMENT / 1e6:.0f} MB")
        kind = schema.ExportedProgram if name.startswith("models/") else schema.PayloadConfig
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the program's {name} is damaged: {type(error).__name__}") from error
        _check(document, kind, _Place(), 0)


class _Place:
    """Where in a document: the class of the schema and its field."""

    def __init__(self, owner: str = "", field: str = "") -> None:
        self.owner, self.field = owner, field

    def __str__(self) -> str:
        return f"{self.owner}.{self.field}"


def _refusal(what: str, value: object) -> UserError:
    return UserError(
        f"this torch.export program holds {what} {str(value)[:80]!r}, which may run code: "
        "pass --trust if you trust the file's author (runs code from the file)"
    )


def _check(value: Any, kind: Any, place: _Place, depth: int) -> None:
    """Whether a value is what the schema says of its place."""
    if depth > DEEPEST:
        raise UserError("the program's document nests too deep")
    kind = _plain(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return
        _check(value, next(t for t in inner if t is not type(None)), place, depth)
    elif origin is list:
        _is(isinstance(value, list), value, place)
        for part in value:
            _check(part, inner[0], place, depth + 1)
    elif origin is dict:
        _is(isinstance(value, dict), value, place)
        for key, part in value.items():
            _text(key, _Place(place.owner, f"{place.field}[]"))
            _check(part, inner[1], place, depth + 1)
    elif is_dataclass(kind):
        _object(value, kind, depth)
    elif kind is str:
        _text(value, place)
    elif isinstance(kind, type) and issubclass(kind, IntEnum):
        _is(type(value) is int, value, place)
    else:
        number = kind is float and type(value) in (int, float)
        special = kind is float and value in ("Infinity", "-Infinity", "NaN")
        _is(number or special or type(value) is kind, value, place)


def _object(value: Any, kind: Any, depth: int) -> None:
    name = kind.__name__
    _is(isinstance(value, dict), value, _Place(name, ""))
    known = {f.name: t for f in fields(kind) if (t := _hints(kind)[f.name]) is not None}
    for key, part in value.items():
        if key not in known or name in _NEVER:
            raise _refusal("the entry", f"{name}.{key}")
        _check(part, known[key], _Place(name, key), depth + 1)
    if name == "TensorMeta":
        sizes = [s.get("as_int", 1) for s in value.get("sizes", ())]
        if any(type(s) is not int or s < 0 for s in sizes) or prod(sizes) > LARGEST_TENSOR:
            raise UserError(f"the program has a tensor of {'x'.join(map(str, sizes))}")


def _hints(kind: Any) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind, vars(schema), include_extras=True)
    return _HINTS[kind]


_HINTS: dict[Any, dict[str, Any]] = {}


def _plain(kind: Any) -> Any:
    """A type without its annotations."""
    return typing.get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def _is(right: bool, value: Any, place: _Place) -> None:
    if not right:
        raise _refusal(f"at {place}", value)


def _text(value: Any, place: _Place) -> None:
    rule = _RULES.get(str(place), _no_text)
    if not isinstance(value, str) or not rule(value):
        what = {"Node.target": "the operator", "SymExpr.expr_str": "the expression"}
        named = "the name" if place.field.endswith("name") else f"at {place} the text"
        raise _refusal(what.get(str(place), named), value)


# -- what a text may be ----------------------------------------------------------------------------


def _no_text(_: str) -> bool:
    return False


def _of(pattern: re.Pattern[str]) -> Rule:
    return lambda text: bool(pattern.fullmatch(text))


_LONGEST, _HIGHEST_POWER, _LARGEST_NUMBER = 2000, 8, 2**63
_KEYWORDS = frozenset("positive nonnegative integer negative evaluate real".split())
_FUNCTIONS = frozenset(
    "Symbol Integer Rational Float Add Mul Pow Mod PythonMod FloorDiv CleanDiv CeilDiv "
    "ModularIndexing IntTrueDiv FloatTrueDiv TruncToInt TruncToFloat CeilToInt FloorToInt "
    "RoundToInt ToFloat Max Min Abs Where Identity Eq Ne Lt Le Gt Ge And Or Not Equality "
    "Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan PowByNatural "
    "BitwiseFn_bitwise_and BitwiseFn_bitwise_or".split()
)


def is_arithmetic(expression: str) -> bool:
    """Whether a text is what sympy prints for a size: sympify would evaluate any Python.

    Powers are of a number and small, and numbers and text are bounded: nothing grows.
    """
    tree = _parsed(expression)
    if tree is None:
        return False
    nodes = list(ast.walk(tree))
    called = {id(n.func) for n in nodes if isinstance(n, ast.Call)}
    quoted = {id(a) for n in nodes if _calls(n, "Symbol", "Integer", "Float") for a in n.args}
    return all(_is_part(node, called, quoted) for node in nodes)


def _calls(node: ast.AST, *names: str) -> typing.TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _parsed(text: str) -> ast.Expression | None:
    if len(text) > _LONGEST or "\n" in text:
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_part(node: ast.AST, called: set[int], quoted: set[int]) -> bool:
    """Whether one node of an expression may stand in it."""
    if isinstance(node, ast.Call):
        named = all(k.arg in _KEYWORDS for k in node.keywords)
        bounded = not _calls(node, "Pow", "PowByNatural") or _is_small(node.args[1:])
        return isinstance(node.func, ast.Name) and named and bounded
    if isinstance(node, ast.Name):
        # A name that isn't called is a symbol, looked up among torch's own functions otherwise.
        return node.id in _FUNCTIONS if id(node) in called else bool(_NAME.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return id(node) in quoted and bool(re.fullmatch(r"[A-Za-z_]\w*|[-+.\deE]+", node.value))
        return isinstance(node.value, int | float) and abs(node.value) < _LARGEST_NUMBER
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.LShift | ast.RShift | ast.MatMult):
            return False
        return not isinstance(node.op, ast.Pow) or _is_small([node.right])
    plain = (ast.Expression, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.keyword, ast.expr_context)
    return isinstance(node, (*plain, ast.operator, ast.unaryop, ast.boolop, ast.cmpop))


def _is_small(exponents: list[Any]) -> bool:
    """Whether an exponent is a small number, written so or as Integer(2)."""
    if len(exponents) != 1:
        return False
    node = exponents[0]
    if _calls(node, "Integer") and len(node.args) == 1:
        node = node.args[0]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, int)
        and node.value <= _HIGHEST_POWER
    )


_COMPARISONS = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Subscript, ast.expr_context),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_SIZE_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel"})


def _is_guard(text: str) -> bool:
    """Whether a text compares sizes of inputs: "L['x'].size()[1] == 7"."""
    tree = _parsed(text)
    if tree is None:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Attribute) or node.args or node.keywords:
                return False
        elif isinstance(node, ast.Attribute):
            if node.attr not in _SIZE_METHODS:
                return False
        elif isinstance(node, ast.Name):
            if node.id != "L":
                return False
        elif isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Pow | ast.LShift | ast.MatMult):
                return False
        elif isinstance(node, ast.Constant):
            value = node.value
            name = isinstance(value, str) and _NAME.fullmatch(value)
            number = isinstance(value, int | float) and abs(value) < _LARGEST_NUMBER
            if not (name or number):
                return False
        elif not isinstance(node, _COMPARISONS):
            return False
    return True


_CONTAINERS = frozenset(
    "builtins.tuple builtins.list builtins.dict collections.OrderedDict collections.deque "
    "torch.fx.immutable_collections.immutable_list "
    "torch.fx.immutable_collections.immutable_dict".split()
)


def _is_structure(text: str) -> bool:
    """Whether a text is the form of values: tuples, lists and dicts by plain keys."""
    if not text:
        return True
    try:
        version, root = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    return type(version) is int and _is_spec(root, 0)


def _is_call(text: str) -> bool:
    """Whether a text is the form of a call's arguments, whose keywords become names in source."""
    if not _is_structure(text):
        return False
    if not text:
        return True
    children = json.loads(text)[1]["children_spec"]
    if len(children) != 2 or children[1]["type"] != "builtins.dict":
        return False
    keywords = json.loads(children[1]["context"])
    return all(type(key) is str and bool(_NAME.fullmatch(key)) for key in keywords or ())


def _is_spec(node: Any, depth: int) -> bool:
    if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        return False
    children = node["children_spec"]
    if depth > DEEPEST or not isinstance(children, list):
        return False
    if node["type"] is None:
        return node["context"] is None and not children
    return (
        node["type"] in _CONTAINERS
        and _are_keys(node["context"])
        and all(_is_spec(child, depth + 1) for child in children)
    )


def _are_keys(context: Any) -> bool:
    """Whether a container's context is nothing, or a list of texts and numbers, written as JSON."""
    try:
        keys = json.loads(context)
    except (ValueError, TypeError, RecursionError):
        return False
    if keys is None or type(keys) is int:
        return True
    return isinstance(keys, list) and all(
        type(key) is int or (type(key) is str and _FREE.fullmatch(key)) for key in keys
    )


#: Classes of the schema that no program needs that edgeprune can take.
_NEVER = frozenset({"CustomObjArgument", "InputToCustomObjSpec", "NamedTupleDef"})

_NAMED, _PATH = _of(_NAME), _of(_QUALIFIED)
_RULES: dict[str, Rule] = {
    "Node.target": is_allowed,
    "Argument.as_operator": is_allowed,
    "Node.name": _NAMED,
    "Node.metadata": _of(_FREE),
    "Node.metadata[]": _NAMED,
    "NamedArgument.name": lambda text: not text or _NAMED(text),
    "TensorArgument.name": _NAMED,
    "TokenArgument.name": _NAMED,
    "GraphArgument.name": _NAMED,
    "SymIntArgument.as_name": _NAMED,
    "SymFloatArgument.as_name": _NAMED,
    "SymBoolArgument.as_name": _NAMED,
    "Argument.as_string": _of(_WORD),
    "Argument.as_strings": _of(_WORD),
    "Argument.as_string_to_argument[]": _NAMED,
    "ConstantValue.as_string": _of(_WORD),
    "InputToConstantInputSpec.name": _NAMED,
    "InputToParameterSpec.parameter_name": _PATH,
    "InputToBufferSpec.buffer_name": _PATH,
    "InputToTensorConstantSpec.tensor_constant_name": _PATH,
    "BufferMutationSpec.buffer_name": _PATH,
    "ParameterMutationSpec.parameter_name": _PATH,
    "GradientToParameterSpec.parameter_name": _PATH,
    "GradientToUserInputSpec.user_input_name": _NAMED,
    "UserInputMutationSpec.user_input_name": _NAMED,
    "ModuleCallEntry.fqn": _PATH,
    "ModuleCallSignature.in_spec": _is_call,
    "ModuleCallSignature.out_spec": _is_structure,
    "ModuleCallSignature.forward_arg_names": _NAMED,
    "Graph.tensor_values[]": _NAMED,
    "Graph.sym_int_values[]": _NAMED,
    "Graph.sym_bool_values[]": _NAMED,
    "Graph.sym_float_values[]": _NAMED,
    "SymExpr.expr_str": is_arithmetic,
    "Device.type": _of(_DEVICE),
    "ExportedProgram.opset_version[]": _NAMED,
    "ExportedProgram.range_constraints[]": _of(_SIZE),
    "ExportedProgram.verifiers": _of(re.compile(r"TRAINING|ATEN|EDGE")),
    "ExportedProgram.torch_version": _of(re.compile(r"[\w.+<=\-]{1,60}")),
    "ExportedProgram.guards_code": _is_guard,
    "PayloadConfig.config[]": _PATH,
    "PayloadMeta.path_name": _of(_FILE),
}
