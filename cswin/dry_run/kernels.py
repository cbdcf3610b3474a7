"""The kernels that MindSpore has chosen for a graph, read from its log and from the graph that it has saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# MindSpore's name of a kernel's library -> ours. aclnn: CANN's newer library; aclop: the older one, compiled at the first use.
LIBRARIES = {"opapi": "aclnn", "acl": "aclop", "rt": "runtime", "hccl": "HCCL", "aicpu": "AI CPU", "cpu": "CPU"}
NO_KERNELS = frozenset(
    [
        "Depend",
        "Load",
        "MakeTuple",
        "MakeList",
        "TupleGetItem",
        "ListGetItem",
        "UpdateState",
        "Return",
        "Partial",
        "Switch",
        "call",
    ]
)
_NODE = re.compile(r"^\s+%\d+\(.*?\) = (?:PrimFunc_)?(\w+)\(")
_CHOSEN = re.compile(r"kernel opname:(\w+), kernel type:(\w+)")
_FORWARD = re.compile(r'forward_unique_id: "(\d+)"')
_NUMBER = re.compile(r'[{ ]unique_id: "(\d+)"')
_SCOPE = re.compile(r"# Fullname with scope: \((.*)\)")
_SOURCE = re.compile(r"# In file (.*?:\d+)")
_CALL = re.compile(r"# In file .*?:\d+, (\d+)~(\d+)/(.*)/")  # first and last column of what is called, and the whole line
_DYNAMIC = re.compile(r"\{[^{}]*-[12]\b[^{}]*\}")  # a dimension of -1, or a rank of -2


@dataclass(frozen=True)
class Kernel:
    """One kernel of a graph, which is launched once whenever the graph runs.

    Attributes:
        operator: MindSpore's name.
        library: a value of `LIBRARIES`; several with a slash between them if MindSpore took the operator from each of them.
        inputs, outputs: number formats of the tensors, as MindSpore names them (Float32), sorted, each once.
        dynamic: whether a shape is only known when the graph runs.
        scope: the cells in which the operator is, and the names by which these lines of source call each other (not every graph
            knows its cells); for a gradient those of the operator whose gradient it is.
        source: file and line of this package that asked for it.
    """

    operator: str
    library: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: bool
    scope: str
    source: str


def chosen_libraries(log: Path) -> dict[str, str]:
    """Library of each operator for which the log says that a kernel was made."""
    found: dict[str, set[str]] = {}
    with log.open(errors="replace") as lines:
        for line in lines:
            if match := _CHOSEN.search(line):
                kind = match[2].removesuffix("_kernel")
                found.setdefault(match[1], set()).add(LIBRARIES.get(kind, kind))
    return {operator: "/".join(sorted(names)) for operator, names in found.items()}


def read_kernels(graph: Path, libraries: dict[str, str]) -> Iterator[Kernel]:
    """The kernels of a saved graph (graph_build_*.ir); `libraries` is from `chosen_libraries`."""
    nodes = list(_nodes(graph))
    scopes = {number[1]: _scope(details) for _, line, details in nodes if (number := _NUMBER.search(line))}
    for operator, line, details in nodes:
        inputs, _, outputs = (details[0] if details else "").rpartition(" -> ")
        on_cpu = "stream_id:" not in line or 'primitive_target: "CPU"' in line
        forward = _FORWARD.search(line)
        places = [place[1] for detail in details if "site-packages" not in detail and (place := _SOURCE.match(detail))]
        yield Kernel(
            operator,
            "CPU" if on_cpu else libraries.get(operator, "CPU"),  # no kernel was made for it on the device
            _formats(inputs),
            _formats(outputs),
            len(details) > 1 and bool(_DYNAMIC.search(details[1])),
            scopes.get(forward[1], _scope(details)) if forward else _scope(details),
            places[-1] if places else "an unknown line",
        )


def _nodes(graph: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Operator, line, and the lines that describe it, of each kernel: types, shapes, kinds, scope, sources."""
    operator, line, details = None, "", []
    with graph.open(errors="replace") as lines:
        for text in lines:
            if operator and text.startswith("      "):
                details.append(text.strip())
                continue
            if operator and not details and not text.startswith("  %"):  # the numbers of a constant, over several lines
                line += text
                continue
            if operator:
                yield operator, line, details
            match = _NODE.match(text)
            operator, line, details = match[1] if match and match[1] not in NO_KERNELS else None, text, []
    if operator:
        yield operator, line, details


def _formats(text: str) -> tuple[str, ...]:
    return tuple(sorted(set(re.findall(r"Tensor\[(\w+)\]", text))))


def _scope(details: list[str]) -> str:
    cells = next((match[1] for detail in details if (match := _SCOPE.match(detail))), "")
    calls = [match[3][int(match[1]) : int(match[2])] for detail in details if (match := _CALL.match(detail))]
    return " ".join([cells, *(call for call in calls if call.isascii() and " " not in call)])
