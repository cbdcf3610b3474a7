"""The nodes of a training, the position of this one, and the address where the ranks connect."""

from __future__ import annotations

import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path

from cswin.config.runtime import Runtime
from cswin.distributed import slurm
from cswin.errors import UserError

FREE_PORTS = range(20000, 32000)  # below the ports that Linux uses for outgoing connections (32768 and above)
DEFAULT_PORT = 8118  # for several nodes with a host file; msrun's default
VISIBLE_DEVICES = "ASCEND_RT_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Cluster:
    """The position of this node among the nodes of the training.

    Attributes:
        devices: ranks on all nodes, the same number on each.
        nodes: number of nodes.
        node: number of this one.
        master: name or address of node 0.
        port: port on node 0 where the ranks connect.
    """

    devices: int
    nodes: int = 1
    node: int = 0
    master: str = "127.0.0.1"
    port: int = DEFAULT_PORT

    @property
    def local_ranks(self) -> range:
        """Numbers of this node's ranks."""
        here = self.devices // self.nodes
        return range(self.node * here, (self.node + 1) * here)


def single_node(devices: int) -> Cluster:
    """This node alone, with a free port."""
    return Cluster(devices, port=free_port())


def find_cluster(runtime: Runtime) -> Cluster:
    """This node's position from the host file or from Slurm, or this node alone.

    Raises:
        UserError: if the number of nodes is not the configured one, or this node is not among them.
    """
    if runtime.nodes == 1:
        return single_node(runtime.devices)
    if runtime.host_file:
        hosts = read_hosts(Path(runtime.host_file))
        node = _own_place(hosts, runtime.host_file)
        found, port = f"runtime.host_file {runtime.host_file}", DEFAULT_PORT
    else:
        hosts, node = slurm.step_hosts(runtime.nodes)
        found, port = "the Slurm job step", FREE_PORTS[int(slurm.job_id() or 0) % len(FREE_PORTS)]
    if len(hosts) != runtime.nodes:
        raise UserError(f"runtime.nodes: {runtime.nodes}, but {found} has {len(hosts)} ({', '.join(hosts)}); make them equal")
    return Cluster(runtime.devices, runtime.nodes, node, hosts[0], runtime.master_port or port)


def read_hosts(path: Path) -> list[str]:
    """Names or addresses, one per line; `#` begins a comment.

    Raises:
        UserError: if the file cannot be read or names a host twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"runtime.host_file {path}: {error.strerror}") from None
    hosts = [host for line in lines if (host := line.partition("#")[0].strip())]
    for host in hosts:
        if len(host.split()) > 1 or hosts.count(host) > 1:
            raise UserError(f"runtime.host_file {path}: {host!r}: write each host once, one name or address a line")
    return hosts


def _own_place(hosts: list[str], path: str) -> int:
    """The line that names this host."""
    mine = [number for number, host in enumerate(hosts) if _is_local(host)]
    if len(mine) != 1:
        which = ", ".join(hosts[number] for number in mine) or "none of its lines"
        raise UserError(
            f"runtime.host_file {path}: exactly one line must be an address of this host ({socket.gethostname()}), but "
            f"{which} is; write the addresses at which the nodes reach each other"
        )
    return mine[0]


def _is_local(host: str) -> bool:
    """Whether an address belongs to this host, tested by binding it."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A free TCP port on this host."""
    for port in random.SystemRandom().sample(FREE_PORTS, 100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise UserError(f"no free TCP port was found between {FREE_PORTS.start} and {FREE_PORTS.stop - 1}")


def require_devices(runtime: Runtime, wanted: int) -> None:
    """Check that the scheduler has given this node enough NPUs.

    Raises:
        UserError: if there are fewer, or if their order would make MindSpore bind a process to the cores of another NPU.
    """
    visible = os.environ.get(VISIBLE_DEVICES)
    if runtime.device_target != "Ascend" or visible is None:
        return
    numbers = [number.strip() for number in visible.split(",") if number.strip()]
    found = len(numbers)
    if runtime.bind_cores and numbers != sorted(numbers, key=lambda number: number.zfill(4)):
        raise UserError(
            f"runtime.bind_cores: {VISIBLE_DEVICES}={visible} must be in ascending order; MindSpore sorts it before it looks for an "
            "NPU's cores"
        )
    if found < wanted:
        raise UserError(
            f"runtime.devices: this node needs {wanted} NPUs, but the job has {found} ({VISIBLE_DEVICES}={visible}); request as many "
            "from the scheduler, or change runtime.devices (and batch_size or accumulation)"
        )
