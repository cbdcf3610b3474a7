"""An invented run folder, as written by a trainer on another host."""

import json
import os
import time
from datetime import datetime
from pathlib import Path

import yaml

from cswin.report.status import run_status

LEASE = "lease-000001.json"


class Invented:
    """A run folder with the files of a trainer on another host."""

    def __init__(self, folder: Path, steps: int = 40):
        self.run, self.stage, self.now = folder / "results/far", folder / "results/far/one", time.time()
        (self.run / "config").mkdir(parents=True)
        (self.stage / "state").mkdir(parents=True)
        stages = {"one": None, "two": "one"}
        for i, (name, previous) in enumerate(stages.items()):
            config = {"run": "far", "stage": name, "previous": previous, "start_epoch": 10 * i, "epochs": 10 * i + 10}
            config |= {"model": {"arch": "cswin_64_24322_small_224_report"}, "optimizer": {"global_batch": 100}}
            (self.run / f"config/{name}.yaml").write_text(yaml.safe_dump(config))
        (self.run / "config/runtime.yaml").write_text(yaml.safe_dump({"lease_timeout": 120.0}))
        self.write("attempts.jsonl", [
            {"attempt": "a", "event": "start", "time": self.clock(-900), "host": "node7", "pid": 5, "job": "4711"},
            {"attempt": "a", "event": "begin", "time": self.clock(-880), "step": 0, "first_step": 0, "last_step": 100},
        ])  # fmt: skip
        rows = [{"kind": "start", "step": 0}]
        for step in range(1, steps + 1):  # a step takes 10 s, of which 4 are the device's; the last one was 20 s ago
            rows.append({"kind": "step", "step": step, "epoch": (step - 1) // 10, "loss": 1.5, "lr": 0.1})
            rows[-1] |= {"images_per_s": 25.0, "seconds": 4.0, "time": self.now - 20 - 10 * (steps - step)}
            if step % 10 == 0:
                figures = {"top1": float(step)}
                rows.append({"kind": "epoch", "epoch": step // 10 - 1, "step": step, "raw": figures, "ema": figures})
        self.write("history.jsonl", rows)
        for step in (20, 30):
            (self.stage / f"state/state-{step:09d}.safetensors").touch()

    def clock(self, seconds: float) -> str:
        return datetime.fromtimestamp(int(self.now + seconds)).astimezone().isoformat()

    def write(self, name: str, rows: list[dict], mode: str = "w") -> None:
        with (self.stage / name).open(mode) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def lease(self, heartbeat: float, written: float) -> None:
        """Write a lease. Heartbeat (trainer's clock) and date of the file (file system's clock) in seconds from now."""
        holder = {"host": "node7", "pid": 5, "started": "1", "job": "4711", "heartbeat": self.now + heartbeat}
        (self.stage / LEASE).write_text(json.dumps(holder))
        os.utime(self.stage / LEASE, (self.now + written, self.now + written))

    def status(self):
        return run_status(self.run, self.now)
