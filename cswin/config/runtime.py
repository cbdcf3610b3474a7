"""Settings that change speed, not results: devices, workers, logging, saving. They may keep defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cswin.config.fields import Count, FilePath, Positive, Section


class Runtime(Section):
    """Keys that change speed, not results. A change never causes training."""

    device_target: Literal["CPU", "Ascend"] = Field("Ascend", description="Device type on which the network runs.")
    devices: Count = Field(8, description="Number of devices over all nodes; each one has its own process.")
    nodes: Count = Field(
        1, description="Number of machines. They share the devices equally; each starts the same command once."
    )
    host_file: FilePath | None = Field(
        None,
        description="File with the addresses of the nodes, one per line, if Slurm does not provide them. The first one is the "
        "master (docs/devices.md).",
    )
    master_port: Annotated[int, Field(ge=1024, le=65535)] | None = Field(
        None,
        description="Port on the first node by which the processes connect. Empty: derived from the Slurm job's number, or "
        "8118.",
    )
    batch_size: Count = Field(128, description="Images per device and forward pass.")
    accumulation: Count = Field(1, description="Forward and backward passes per optimizer step.")
    recompute: list[Annotated[int, Field(ge=1, le=4)]] = Field(
        [],
        description="Stages of the network whose blocks are computed again in the backward pass, not kept: less memory on Ascend for at most "
        "a third more time, the same results. [3] saves most.",
    )
    eval_batch_size: Count = Field(128, description="Images per device and forward pass in evaluation.")
    workers: Annotated[int, Field(ge=1, le=512)] = Field(8, description="Workers per device that decode and augment images.")
    worker_kind: Literal["thread", "process"] = Field(
        "process", description="Kind of the workers: threads (less memory) or processes (for many cores)."
    )
    prefetch: Count = Field(4, description="Number of batches that are prepared in advance.")
    log_every: Count = Field(50, description="Read the loss from the device every so many steps.")
    tensorboard: bool = Field(True, description="Write an event file for TensorBoard to the folder of each stage.")
    graph_cache: bool | None = Field(
        None,
        description="Keep compiled graphs, so that the same network is compiled once (docs/devices.md). Empty: on the CPU only.",
    )
    jit_backend: Literal["ms_backend", "GE"] | None = Field(
        None, description="Compiler of the network (docs/ascend.md). Empty: GE on the first Ascend 910, ms_backend elsewhere."
    )
    jit_level: Literal["O0", "O1"] | None = Field(
        None, description="Optimisation level of ms_backend. O1 fuses operators on Ascend (experimental). Empty: O0."
    )
    skip_by: Literal["branch", "select"] = Field(
        "branch",
        description="How a step that overflows is skipped. branch: the host waits for the result of each step; select: the update runs and "
        "changes nothing.",
    )
    preflight: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Check the devices before the first stage (`cswin preflight`, docs/ascend.md). auto: on Ascend only.",
    )
    bind_cores: bool = Field(
        False, description="Bind each process, with its data workers, to separate cores near its device. For several devices."
    )
    agree_every: Count = Field(
        5, description="Let several devices agree every so many steps on whether to stop. Each agreement waits for the device."
    )
    save_minutes: Positive = Field(
        15.0, description="Save the training state every so many minutes, and at the end of each epoch."
    )
    keep_states: Annotated[int, Field(ge=2)] = Field(3, description="Number of training states that are kept.")
    lease_timeout: Positive = Field(
        300.0, description="Seconds without heartbeat after which the lease of another host expires."
    )

    @property
    def wants_preflight(self) -> bool:
        """Whether the devices are checked before the first stage."""
        return self.device_target == "Ascend" if self.preflight == "auto" else self.preflight == "always"

    @property
    def caches_graphs(self) -> bool:
        """Whether compiled graphs are kept."""
        return self.device_target == "CPU" if self.graph_cache is None else self.graph_cache
