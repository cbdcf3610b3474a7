"""Times each step of the data path and a reference for its limit (tar, cp, plain reads of the same bytes), and its peak memory.

    python benchmarks/data.py --images 4000
    python benchmarks/data.py --images 100000 --pixels 32 --repeat 1

The images are JPEGs of noise over scikit-learn's two photographs; 500 pixels wide they have ImageNet's mean size of 110 kB. Every
step runs in its own process; imports are not timed; memory is that of the process and its children. A step and its reference
alternate, so a busy machine or a slow disk affects both: compare the ratios (medians with ranges). Both end when their bytes are on
the disk (`sync -f`, which the extraction and the conversion do themselves). With --cold their input is dropped from the page cache
before, as with data larger than memory.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

_DISTINCT = 200  # number of different files; they are repeated up to the requested number
_VAL_SHARE = 25


class Cost(NamedTuple):
    """Wall-clock seconds, CPU seconds (children included), peak memory in MB."""

    seconds: float
    cpu: float
    memory: float


def quiet_console():
    """Progress without output."""
    from cswin.progress import Console

    return Console(None, io.StringIO())


def extract(folder: Path, archive: str) -> Callable[[], object]:
    from cswin.data.sources.archive import Archive
    from cswin.data.sources.extraction import extract as run

    shutil.rmtree(folder / "images", ignore_errors=True)
    return lambda: run(Archive(folder / archive), folder / "images", folder / "extracted.json", quiet_console())


def manifest(folder: Path, workers: int) -> Callable[[], object]:
    from cswin.data.store.scan import ManifestOptions, write_manifest

    files = folder / "images", folder / "manifest.csv.gz", folder / "manifest.json"
    return lambda: write_manifest(*files, quiet_console(), ManifestOptions(workers=workers, shard_mb=4096))


def convert(folder: Path, split: str) -> Callable[[], object]:
    import mindspore.mindrecord  # noqa: F401  its import is not the conversion's

    from cswin.data.store.mindrecord import convert_shard, keep_freed_memory

    keep_freed_memory()
    output = folder / "shards" / f"{split}-00000.mindrecord"
    files = folder / "images", folder / "manifest.csv.gz", folder / "manifest.json"
    return lambda: convert_shard(*files, (split, 0), output, quiet_console())


def verify(folder: Path) -> Callable[[], object]:
    from cswin.data.store.assemble import verify_dataset

    return lambda: [check.problems for check in verify_dataset(folder / "dataset.json", quiet_console())]


def read_random(folder: Path, rows: int) -> Callable[[], object]:
    from cswin.data.store.dataset import Dataset, read_rows

    dataset = Dataset.load(folder / "dataset.json")
    positions = np.random.default_rng(0).permutation(dataset.images("train"))[:rows]
    return lambda: sum(len(data) for _, _, data in read_rows(dataset, "train", positions))


def read_with_mindspore(folder: Path, rows: int) -> Callable[[], object]:
    import mindspore.dataset as ds

    from cswin.data.store.dataset import Dataset

    dataset = Dataset.load(folder / "dataset.json")
    positions = np.random.default_rng(0).permutation(dataset.images("train"))[:rows].tolist()

    def read() -> int:
        files = [str(path) for path in dataset.shards("train")]
        reader = ds.MindDataset(files, columns_list=["label", "image"], sampler=ds.SubsetSampler(positions))
        return sum(len(image) for _, image in reader.create_tuple_iterator(num_epochs=1, output_numpy=True))

    return read


def plain_reads(folder: Path, rows: int) -> Callable[[], object]:
    """The limit of reading: pread of as many bytes, one after the other, from the same file."""
    path = folder / "shards" / "train-00000.mindrecord"
    size = path.stat().st_size
    row = sum(p.stat().st_size for p in (folder / "images" / "train").rglob("*.JPEG")) // rows
    starts = np.random.default_rng(0).permutation(np.arange(0, size - row, row))[:rows].tolist()

    def read() -> int:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return sum(len(os.pread(descriptor, row, start)) for start in starts)
        finally:
            os.close(descriptor)

    return read


def _child(pipe, name: str, arguments: tuple) -> None:
    function = STEPS[name](*arguments)
    before, start = _cpu(), time.perf_counter()
    function()
    seconds, cpu = time.perf_counter() - start, _cpu() - before
    pipe.send(Cost(seconds, cpu, _peak_memory(with_child=name == "extract")))


def _peak_memory(with_child: bool) -> float:
    """Peak memory in MB of this process and, with `with_child`, of its largest child (rapidgzip).

    ru_maxrss starts at the value of the parent process. So it is not used for this process, and is an upper bound for the child.
    """
    status = Path("/proc/self/status").read_text()
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if with_child else 0
    return (own + child) * 1024 / 1e6


def _cpu() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def run(name: str, *arguments: object) -> Cost:
    """One step in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, name, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit(f"{name} failed, see above") from None
    finally:
        process.join()


def shell(line: str, written: Path) -> Cost:
    """The cost of a shell command, including the flush of its output to the disk."""
    before, start = _cpu(), time.perf_counter()
    subprocess.run(f"{line} && sync -f {written}", shell=True, check=True, stdout=subprocess.DEVNULL)
    return Cost(time.perf_counter() - start, _cpu() - before, 0)


def evict(folder: Path) -> None:
    """Drop a file, or all files of a folder, from the page cache."""
    for path in [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def make_files(pixels: int) -> list[bytes]:
    """Distinct JPEG files, `pixels` wide."""
    from sklearn.datasets import load_sample_images

    random, photographs = np.random.default_rng(0), load_sample_images().images
    files = []
    for number in range(_DISTINCT):
        left, top = random.integers(0, 100, 2)
        part = Image.fromarray(photographs[number % 2]).crop((left, top, left + 520, top + 320))
        small = np.asarray(part.resize((pixels, pixels * 3 // 4), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (small + random.integers(-9, 10, small.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


def make_archives(folder: Path, images: int, pixels: int) -> Callable[[], object]:
    """a.tar and a.tar.gz in the report's layout, and size.json with the bytes of all images."""
    return lambda: _make_archives(folder, images, pixels)


def _make_archives(folder: Path, images: int, pixels: int) -> None:
    files, total = make_files(pixels), 0
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number in range(images):
            split = "val" if number % _VAL_SHARE == 0 else "train"
            data = files[number % _DISTINCT]
            member = tarfile.TarInfo(f"{split}/n{number // _VAL_SHARE % 100:08d}/image_{number}.JPEG")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            total += len(data)
    subprocess.run(["gzip", "--fast", "--keep", folder / "a.tar"], check=True)
    (folder / "size.json").write_text(json.dumps(total))


STEPS = {
    f.__name__: f for f in (make_archives, extract, manifest, convert, verify, read_random, read_with_mindspore, plain_reads)
}


class Report:
    """Prints one line per step."""

    def __init__(self, images: int, size: int):
        self.images, self.size = images, size

    def line(self, name: str, costs: list[Cost], limit: str = "", limits: list[Cost] = (), share: float = 1.0) -> None:
        """A step and its limit; `share` of all images is what both handle."""
        seconds = statistics.median(cost.seconds for cost in costs)
        cores = statistics.median(cost.cpu / cost.seconds for cost in costs)
        text = f"{name:22} {self.size * share / seconds / 1e6:7.0f} MB/s {self.images * share / seconds:9,.0f} images/s"
        text += f"  {cores:4.1f} cores  peak {max(cost.memory for cost in costs):5.0f} MB"
        if limits:
            ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(costs, limits, strict=True)]
            beside = statistics.median(cost.seconds for cost in limits)
            text += f"   {limit} {self.size * share / beside / 1e6:6.0f} MB/s"
            text += f"   ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})"
        print(text, flush=True)


def assemble(folder: Path) -> None:
    """Make the val shard, which is not timed, and dataset.json."""
    from cswin.data.store.assemble import write_dataset

    run("convert", folder, "val")
    write_dataset(folder / "manifest.json", folder / "shards", folder / "dataset.json")


class Benchmark:
    """All steps, in the order of the workflow."""

    def __init__(self, folder: Path, args: argparse.Namespace):
        self.folder, self.args = folder, args
        run("make_archives", folder, args.images, args.pixels)
        size = json.loads((folder / "size.json").read_text())
        self.report = Report(args.images, size)
        print(
            f"{args.images:,} images of {size / args.images / 1e3:.1f} kB, {'cold' if args.cold else 'warm'}; "
            f"{os.cpu_count()} cores, load before the start {os.getloadavg()[0]:.1f}",
            flush=True,
        )

    def turns(self, reads: Path, *functions: Callable[[], Cost]) -> list[list[Cost]]:
        """Call the functions alternately, --repeat times each; with --cold `reads` is dropped from the page cache before each call."""
        costs: list[list[Cost]] = [[] for _ in functions]
        for _ in range(self.args.repeat):
            for function, measured in zip(functions, costs, strict=True):
                if self.args.cold:
                    evict(reads)
                measured.append(function())
        return costs

    def extraction(self, name: str, flags: str) -> None:
        """Time the extraction of an archive, and `tar` as its limit."""
        archive, limit = self.folder / name, self.folder / "limit"
        ours, theirs = self.turns(
            archive,
            lambda: run("extract", self.folder, name),
            lambda: shell(f"tar {flags} {archive} -C {fresh(limit)}", limit),
        )
        self.report.line(f"extract {name}", ours, f"tar {flags}", theirs)

    def conversion(self) -> float:
        """Time the manifest, then one shard and copying as its limit. Returns the share of the training images."""
        images, limit = self.folder / "images", self.folder / "limit"
        for threads in sorted({1, self.args.workers}):
            (costs,) = self.turns(images, lambda threads=threads: run("manifest", self.folder, threads))
            self.report.line(f"manifest, {threads} threads", costs)
        share = json.loads((self.folder / "manifest.json").read_text())["splits"]["train"]["images"] / self.args.images
        copy = f"cp -r {images / 'train'} {limit}/train"
        check = f"find {limit} -type f -exec sha256sum {{}} +"
        ours, copied, checked = self.turns(
            images,
            lambda: run("convert", self.folder, "train"),
            lambda: fresh(limit) and shell(copy, limit),
            lambda: fresh(limit) and shell(f"{copy} && {check}", limit),
        )
        self.report.line("convert, one shard", ours, "cp -r", copied, share)
        self.report.line("convert, one shard", ours, "cp -r, sha256sum", checked, share)
        return share

    def reading(self, share: float) -> None:
        """Time the verification, and rows in random order with plain reads and MindDataset as references."""
        shards, rows = self.folder / "shards", round(share * self.args.images)
        assemble(self.folder)
        (costs,) = self.turns(shards, lambda: run("verify", self.folder))
        self.report.line("verify", costs)
        ours, plain, mindspore = self.turns(
            shards,
            *(lambda name=name: run(name, self.folder, rows) for name in ("read_random", "plain_reads", "read_with_mindspore")),
        )
        self.report.line("rows in random order", ours, "pread", plain, share)
        self.report.line("rows in random order", ours, "MindDataset", mindspore, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="default: %(default)s (450 MB, four times that on the disk)")
    parser.add_argument("--pixels", type=int, default=500, help="width of the images (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads of the manifest (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="read from the disk and not from the page cache")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder for temporary files)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="cswin_benchmark_") as folder:
        benchmark = Benchmark(Path(folder), args)
        benchmark.extraction("a.tar.gz", "xzf")
        benchmark.extraction("a.tar", "xf")
        benchmark.reading(benchmark.conversion())


if __name__ == "__main__":
    main()
