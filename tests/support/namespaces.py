"""Two hosts on one machine: network namespaces joined by a veth pair, each with its own address."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace and its address."""

    name: str
    address: str

    @property
    def within(self) -> tuple[str, ...]:
        """The prefix of a command that runs on this host."""
        return ("ip", "netns", "exec", self.name)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Create two hosts, and remove them at the end; skips the test if this is not allowed."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("NOT TESTED: several nodes. Network namespaces need root and iproute2 (apt-get install iproute2)")
    mark = os.getpid() % 10000
    hosts = tuple(Host(f"cswin{mark}n{i}", f"10.213.77.{i + 1}") for i in range(2))
    links = [f"cs{mark}v{i}" for i in range(2)]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        _ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for host, link in zip(hosts, links, strict=True):
            _ip("link", "set", link, "netns", host.name)
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", link)
            for device in ("lo", link):
                _ip("-n", host.name, "link", "set", device, "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NOT TESTED: several nodes. `ip {' '.join(arguments)}` is refused here: {done.stderr.strip()}")
