"""The process that compiles: `python -m cswin.dry_run.child FOLDER WHAT CHIP`, started by `cswin.dry_run.run`.

FOLDER holds the files of `INPUTS`; `RESULT` is written there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cswin.config.resolve import StageConfig, load_runtime, load_stage
from cswin.config.runtime import Runtime
from cswin.distributed.backend import Backend, simulated_backend
from cswin.distributed.ranks import Ranks
from cswin.distributed.worker import end_with_parent
from cswin.errors import UserError

INPUTS, RESULT = ("stage-config.yaml", "stage-runtime.yaml"), "result.json"
GRAPHS = "graph_build_*.ir"  # MindSpore's name of a graph as it is scheduled


class Compiler:
    """Compiles by calling; notes for each graph the seconds and the files that MindSpore has saved."""

    def __init__(self, folder: Path):
        self.folder, self.graphs, self.seen = folder, [], set()

    def __call__(self, name: str, per_step: int, call: Callable[[], object]) -> None:
        """`call` runs the graph for the first time; a training step runs it `per_step` times."""
        import mindspore as ms

        started = time.monotonic()
        call()
        ms.runtime.synchronize()
        files = {str(file) for file in (self.folder / "ir").rglob(GRAPHS)}
        self.graphs.append(
            {
                "name": name,
                "per_step": per_step,
                "seconds": time.monotonic() - started,
                "files": sorted(files - self.seen),
            }
        )
        self.seen |= files


def compile_training(compiler: Compiler, stage: StageConfig, runtime: Runtime, backend: Backend) -> None:
    """The graphs of an optimizer step."""
    import mindspore as ms
    import numpy as np

    from cswin.train.trainer import stage_step

    arch, batch = stage.architecture, runtime.batch_size
    step = stage_step(stage, runtime, np.zeros(1, np.float32), runtime.devices, backend)
    inputs = (
        ms.Tensor(np.zeros((batch, arch.in_channels, arch.image_size, arch.image_size), np.float32)),
        ms.Tensor(np.zeros((batch, arch.num_classes), np.float32)),
        ms.Tensor(np.zeros((2 * sum(arch.depth), batch), np.float32)),
    )
    if runtime.accumulation > 1:
        compiler("accumulate", runtime.accumulation - 1, lambda: step.accumulate(*inputs))
    compiler("step", 1, lambda: step(*inputs))


def compile_evaluation(compiler: Compiler, stage: StageConfig, runtime: Runtime, backend: Backend) -> None:
    """The graph of an evaluation."""
    from cswin.train.trainer import stage_predictor

    compiler("evaluate", 0, stage_predictor(stage, runtime, backend).compile)


def compile_exchanges(compiler: Compiler, stage: StageConfig, runtime: Runtime, backend: Backend) -> None:
    """What several ranks send to each other apart from gradients. They are single operators, not a graph."""
    import mindspore as ms

    ranks = Ranks(0, runtime.devices)
    compiler("agree", 0, lambda: ranks.agree(None))
    compiler("follow", 0, lambda: ranks.follow_first((1, 2), [ms.Parameter(ms.Tensor([1.0, 2.0], ms.float32), name="p")]))


COMPILE = {"evaluation": compile_evaluation, "training": compile_training, "exchanges": compile_exchanges}


def main(folder: Path, what: str, chip: str) -> None:
    """Compile, and write `RESULT`: graphs, planned peak of the memory in bytes, and the reason if something failed."""
    end_with_parent()
    compiler = Compiler(folder)
    result = {"graphs": compiler.graphs, "peak": 0, "problem": None, "refused": None}
    try:
        stage, runtime = load_stage(folder / INPUTS[0]), load_runtime(folder / INPUTS[1])
        backend = simulated_backend(runtime, chip)
        backend.require_training(stage.optimizer.amp_level, stage.optimizer.amp_dtype)
        if runtime.devices > 1:
            from mindspore.communication import init

            init()
        import mindspore as ms

        COMPILE[what](compiler, stage, runtime, backend)
        result["peak"] = ms.runtime.max_memory_allocated()
    except UserError as error:
        result["refused"] = str(error)
    except Exception as error:  # MindSpore's errors have no common class
        reason = str(error).split("\n\n")[0]  # what follows are MindSpore's call stacks
        result["problem"] = " ".join(reason.split()) or type(error).__name__
    (folder / RESULT).write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
