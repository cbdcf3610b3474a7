"""The configuration of a device before any computation, and the record of the values in force.

MindSpore's defaults differ between the first Ascend 910 and its successors (A2, A3), and most can be set only once, in one order:
environment, device, precision, determinism, then `init()` of several ranks, then everything else. docs/ascend.md gives the reasons.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from cswin.distributed.cores import usable_cores
from cswin.errors import UserError

if TYPE_CHECKING:
    from cswin.config.runtime import Runtime

TARGETS = ("CPU", "Ascend")
SIMULATION = "MS_SIMULATION_LEVEL"  # with this variable MindSpore compiles but computes nothing
HCCL_CONNECT_SECONDS = 1200  # ranks compile and load at different speed; MindSpore sets 600 when it is imported
# Set by cluster images and other launchers, but harmful here: a rank table forces the graph engine and turns AllFinite off, another
# overflow mode hides overflows from the training step, and MindSpore overwrites RANK_ID with Open MPI's rank.
NOT_INHERITED = (
    "RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH", "MS_ASCEND_CHECK_OVERFLOW_MODE",
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE",
)  # fmt: skip
RECORDED = (
    "ASCEND_RT_VISIBLE_DEVICES", "HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT", "HCCL_DETERMINISTIC", "TE_PARALLEL_COMPILER",
)  # fmt: skip


@dataclass(frozen=True)
class Backend:
    """How a device computes.

    Attributes:
        device: a key of `BACKENDS`.
        soc: name of the chip; None on the CPU.
        precision_mode: CANN's mode for float32 operators; None on the CPU.
        allow_hf32: whether float32 products may be rounded to 11 bits of mantissa; None if the device does not have this.
        jit_backend: compiler of `ms.jit`.
        jit_level: its level; None if the compiler has no levels.
        deterministic: whether the same input gives bit-identical results in each run.
        overflow: "infnan" (IEEE 754), or "saturation": an overflow gives the largest number, NaN gives 0, and only a flag shows it.
        products: number formats in which matrix products and convolutions are computed.
        skip_by: how a step that is not finite is skipped: "branch" (the host waits for the flag) or "select" (the update runs with
            factors that change nothing).
    """

    device: str
    soc: str | None = None
    precision_mode: str | None = None
    allow_hf32: bool | None = None
    jit_backend: str = "ms_backend"
    jit_level: str | None = "O0"
    deterministic: bool = True
    overflow: str = "infnan"
    products: tuple[str, ...] = ("float32", "float16")
    skip_by: str = "branch"

    @property
    def saturates(self) -> bool:
        """Whether an overflow does not show as Inf or NaN."""
        return self.overflow == "saturation"

    @property
    def jit_options(self) -> dict[str, str]:
        """Keyword arguments for `ms.jit`."""
        return {"backend": self.jit_backend} | ({"jit_level": self.jit_level} if self.jit_level else {})

    def require_training(self, amp_level: str, amp_dtype: str) -> None:
        """Reject a mixed precision that the device does not have, before any compilation.

        Raises:
            UserError: with key and remedy.
        """
        if amp_level != "O0" and amp_dtype not in self.products:
            raise UserError(
                f"optimizer.amp_dtype: {amp_dtype!r} is not available on this device ({self.device}: products in "
                f"{', '.join(self.products)}); use float16"
            )
        if amp_level == "O0" and "float32" not in self.products:
            raise UserError(
                f"optimizer.amp_level: O0 is not available on this device ({self.device}: products in {', '.join(self.products)}), "
                "and without a loss scale small gradients vanish in them; use O1"
            )

    def record(self) -> dict[str, Any]:
        """The values in force in this process, as plain values for the records."""
        values = asdict(self) | {"products": list(self.products), "cores": usable_cores()}
        if self.soc is None:
            return values
        return values | {"environment": {name: os.environ[name] for name in RECORDED if name in os.environ}}


BACKENDS = {
    "CPU": Backend("CPU"),
    "910": Backend("910", precision_mode="allow_fp32_to_fp16", jit_backend="GE", jit_level=None, deterministic=False, overflow="saturation",
                   products=("float16",)),
    "A2/A3": Backend("A2/A3", precision_mode="must_keep_origin_dtype", allow_hf32=False,
                     products=("float32", "float16", "bfloat16")),
}  # fmt: skip
# Huawei's names: the first 910 is also sold as 910B, without a digit.
SOCS = {
    "910": r"Ascend910(A|B|ProA|ProB|PremiumA)?",
    "A2/A3": r"Ascend910(B\d.*|_93.*)",
}
# What a dry run can compile for: a chip of each kind, and the memory in GiB that most of its devices have.
CHIPS = {"910": ("Ascend910A", 32), "A2": ("Ascend910B2", 64), "A3": ("Ascend910_9391", 64)}


def prepare_environment(environment: Any = os.environ) -> list[str]:
    """Set the environment variables for this process and those that it starts. Call it before MindSpore is imported.

    Returns:
        Names of variables that were set and are not passed on.
    """
    removed = [name for name in NOT_INHERITED if environment.pop(name, None) is not None]
    environment.setdefault("HCCL_CONNECT_TIMEOUT", str(HCCL_CONNECT_SECONDS))
    return removed


def refuse_simulation(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UserError in MindSpore's dry run, whose results are meaningless."""
    if environment.get(SIMULATION):
        raise UserError(
            f"{SIMULATION}={environment[SIMULATION]} is set: MindSpore would compile, compute nothing and return meaningless "
            f"numbers; unset {SIMULATION}"
        )


def choose_backend(soc: str | None, jit_backend: str | None = None, jit_level: str | None = None) -> Backend:
    """The configuration for a chip.

    Args:
        soc: name of the chip; None: the CPU.
        jit_backend, jit_level: the user's choice; None: the device's default.

    Raises:
        UserError: for an unknown chip, or a compiler that the device does not have.
    """
    device = "CPU" if soc is None else next((name for name, pattern in SOCS.items() if re.fullmatch(pattern, soc)), None)
    if device is None:
        raise UserError(
            f"device Ascend: chip {soc!r} is not known here; known are the first 910, A2 (910B1 to B4) and A3 (910_93)"
        )
    if jit_backend == "GE" and device == "CPU":
        raise UserError("runtime.jit_backend: 'GE' is a compiler for Ascend; on the CPU leave it out")
    compiler = jit_backend or BACKENDS[device].jit_backend
    if jit_level not in (None, "O0") and (device == "CPU" or compiler == "GE"):
        what = "on the CPU" if device == "CPU" else "with runtime.jit_backend GE"
        raise UserError(f"runtime.jit_level: {jit_level!r} has no effect {what}; leave it out")
    return replace(BACKENDS[device], soc=soc, jit_backend=compiler, jit_level=None if compiler == "GE" else jit_level or "O0")


@functools.cache  # MindSpore takes these settings once per process
def start_backend(
    target: str = "CPU", device_id: int = 0, jit_backend: str | None = None, jit_level: str | None = None
) -> Backend:
    """Configure MindSpore for a device. Call it before any computation and before `init()`; again only with the same arguments.

    Raises:
        UserError: if this process cannot use the device, with MindSpore's reason; in MindSpore's dry run.
    """
    refuse_simulation()
    import mindspore as ms

    if target == "CPU":
        # Otherwise the main thread waits for a graph in a busy loop, on a core that the graph's operations need.
        os.environ.setdefault("MS_DEV_HOST_BLOCKING_RUN", "1")
    _set_device(ms, target, 0 if target == "CPU" else device_id)
    if target == "CPU":
        return choose_backend(None, jit_backend, jit_level)
    backend = choose_backend(ms.hal.get_device_name(device_id, target), jit_backend, jit_level)
    _configure(ms, backend)
    return backend


def simulated_backend(runtime: Runtime, soc: str) -> Backend:
    """`backend_of` in MindSpore's dry run, which has no chip to ask and no graph engine: ms_backend compiles instead.

    Raises:
        UserError: if CANN is not installed; if the chip has not what the runtime section asks for.
    """
    import mindspore as ms

    backend = choose_backend(soc, runtime.jit_backend, runtime.jit_level)
    backend = replace(backend, jit_backend="ms_backend", jit_level=backend.jit_level or "O0", skip_by=runtime.skip_by)
    try:
        _set_device(ms, "Ascend", 0)
    except UserError as error:
        raise UserError(
            f"a dry run needs CANN, but no NPU: install CANN 8.5.0 and source its set_env.sh (docs/ascend.md)\n{error}"
        ) from None
    _configure(ms, backend)
    return backend


def backend_of(runtime: Runtime, device_id: int) -> Backend:
    """`start_backend` with the values of the runtime section."""
    backend = start_backend(runtime.device_target, device_id, runtime.jit_backend, runtime.jit_level)
    return replace(backend, skip_by=runtime.skip_by)


def backend_text(record: Mapping[str, Any]) -> str:
    """`Backend.record` in one line."""
    compiler = " ".join(filter(None, (record["jit_backend"], record["jit_level"])))
    parts = [f"{record['device']} ({record['soc']})" if record["soc"] else record["device"], f"compiler {compiler}"]
    if record["soc"]:
        hf32 = {None: "", True: ", HF32", False: ", no HF32"}[record["allow_hf32"]]
        parts += [f"precision {record['precision_mode']}{hf32}", f"overflow {record['overflow']}"]
    parts += ["deterministic" if record["deterministic"] else "not deterministic", f"{record['cores']} cores"]
    return ", ".join(parts)


def _configure(ms: Any, backend: Backend) -> None:
    precision = ms.device_context.ascend.op_precision
    precision.precision_mode(backend.precision_mode)
    if backend.allow_hf32 is not None:
        precision.conv_allow_hf32(backend.allow_hf32)
        precision.matmul_allow_hf32(backend.allow_hf32)
    if backend.deterministic:
        ms.set_deterministic(True)


def _set_device(ms: Any, target: str, device_id: int) -> None:
    try:
        ms.set_device(target, device_id)
    except (RuntimeError, ValueError) as error:
        if tuple(ms.get_current_device()) == (target, device_id):  # MindSpore refuses any change after the first kernel
            return
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device {target} {device_id} cannot be used: {reason}") from error


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """`--device-target` and `--device-id`, for `start_backend`."""
    parser.add_argument("--device-target", choices=TARGETS, default="CPU", help="what computes (default: CPU)")
    parser.add_argument("--device-id", type=int, default=0, metavar="N", help="number of the NPU (default: 0)")
