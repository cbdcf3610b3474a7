"""What the package uses of MindSpore beside its documentation: in one module, and still there. A failure names what has changed."""

import ast
import importlib
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

import cswin
from cswin.model import cpu

PRIVATE = {"model/cpu.py": {"mindspore.ops.operations._pyfunc_registry.add_pyfunc"}}
PACKAGE = Path(cswin.__file__).parent


def _private_names(tree: ast.Module) -> set[str]:
    """Names below mindspore of which a part begins with one underscore."""
    names, aliases = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            aliases |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                        for alias in node.names}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            names.add(f"{aliases.get(first, first)}.{rest}")
    parts = {name: name.split(".") for name in names}
    return {n for n, p in parts.items() if p[0] == "mindspore" and any(x[:1] == "_" and x[:2] != "__" for x in p)}


def test_private_interfaces_of_mindspore_are_used_in_one_module():
    sources = {file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")}
    assert {name: found for name, tree in sources.items() if (found := _private_names(tree))} == PRIVATE


@pytest.mark.parametrize("name", sorted(PRIVATE["model/cpu.py"]))
def test_private_interface_is_there(name):
    module, _, attribute = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), attribute, None)), (
        f"MindSpore {ms.__version__} has no {name} any more"
    )


def test_a_function_is_found_by_the_number_that_add_pyfunc_was_given():
    """Custom registers functions by their address; the attribute `fn_id` makes it look under a number of ours."""

    def double(x):
        return 2 * x

    operation = cpu.compiled_operation(double, "double, for a test", lambda x: x)
    number = operation.fn_id
    x = ms.Tensor(np.arange(3, dtype=np.float32))
    found = ms.jit(operation)(x).asnumpy()
    assert found.tolist() == [0, 2, 4], "ops.Custom: the function under `fn_id` (_pyfunc_registry.add_pyfunc) was not called"
    assert number == cpu.compiled_operation(double, "double, for a test", lambda x: x).fn_id != id(double), "Custom: fn_id"
