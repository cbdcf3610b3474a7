"""Images per second of the whole training pipeline, from MindRecord to mixed batches, and the time of each operation.

    python benchmarks/loader.py                     # threads and processes, 1 to all cores
    python benchmarks/loader.py --workers 8 --kind process --batches 40

The images are generated: a few hundred JPEGs of 500 x 375 pixels and about 110 KB (ImageNet's average), cut from the two
photographs in scikit-learn, enlarged, with some grain. They are converted to MindRecord once, in --folder. The speed of a shared
machine varies, so each round also times decoding alone, which is the limit: compare the shares of this limit.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import yaml
from PIL import Image

from cswin.config.resolve import parse_settings, resolve_stage
from cswin.data.augment.mixup import apply_mixup
from cswin.data.augment.transforms import Drawn, TrainTransform, compile_kernels
from cswin.data.images.decode import EncodedImage
from cswin.data.images.resample import resize_crop
from cswin.data.loader.batches import TrainLoader
from cswin.data.loader.rng import sample_rng
from cswin.data.store.dataset import Dataset, read_rows

RECIPE = Path(__file__).parents[1] / "config/imagenet/report_small_224.yaml"
WIDTH, HEIGHT, BYTES, SPREAD = 500, 375, 110_000, 25_000
GRAIN = 4.0  # standard deviation of the noise, of 255
CLASSES = 4
# Filters and erasing as in the report, and as in the paper's code.
ORDERS = {"report": {}, "paper": {"interpolation": "random", "erase": "after_mixing"}}


def photographs(count: int) -> Iterator[bytes]:
    """`count` different JPEGs; their quality is chosen so that the file sizes vary around the average."""
    from sklearn.datasets import load_sample_images

    originals = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(count):
        photo = originals[number % len(originals)]
        height = int(rng.integers(300, photo.height + 1))
        width = height * WIDTH // HEIGHT
        left, top = (int(rng.integers(0, free + 1)) for free in (photo.width - width, photo.height - height))
        image = photo.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        grain = rng.normal(0, GRAIN, (HEIGHT, WIDTH, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
        yield encode(image, int(np.clip(rng.normal(BYTES, SPREAD), 50_000, 200_000)))


def encode(image: Image.Image, size: int) -> bytes:
    """JPEG with the best quality below `size` bytes."""
    low, high, best = 30, 99, b""
    while low <= high:
        quality, buffer = (low + high) // 2, io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= size:
            low, best = quality + 1, buffer.getvalue()
        else:
            high = quality - 1
    return best or buffer.getvalue()


def dataset(folder: Path, images: int) -> Dataset:
    """The dataset of the images; made if it does not exist."""
    folder = folder / f"photographs-{images}"
    result, rows, summary = (folder / name for name in ("dataset.json", "manifest.csv.gz", "manifest.json"))
    if not result.exists():
        from cswin.data.store.assemble import write_dataset
        from cswin.data.store.mindrecord import convert_shard
        from cswin.data.store.scan import write_manifest
        from cswin.progress import Console

        console = Console(None, io.StringIO())
        for number, data in enumerate(photographs(images)):
            for split in ("train", "val") if number < CLASSES else ("train",):
                path = folder / "images" / split / f"class{number % CLASSES}" / f"{number:05d}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        splits = write_manifest(folder / "images", rows, summary, console).splits
        for split, facts in splits.items():
            for shard in range(facts.shards):
                output = folder / "shards" / f"{split}-{shard:05d}.mindrecord"
                convert_shard(folder / "images", rows, summary, (split, shard), output, console)
        write_dataset(summary, folder / "shards", result)
    return Dataset.load(result)


def stage(kind: str, workers: int, batch: int, order: str = "report"):
    """The report's recipe on one device, with the order of one of ORDERS."""
    values = yaml.safe_load(RECIPE.read_text())
    values["data"] |= {"classes": CLASSES}
    values["augment"] |= {"mixup_group": batch, **ORDERS[order]}
    values["optimizer"] |= {"global_batch": batch}
    values["runtime"] |= {"devices": 1, "batch_size": batch, "workers": workers, "worker_kind": kind}
    settings = parse_settings(values)
    return resolve_stage(settings, next(iter(settings.stages))), settings.runtime


class Rate(NamedTuple):
    """Images per second, and milliseconds of this process's CPU time per image, over all of its threads."""

    images: float
    cpu: float


def measured(images: int, work: Callable[[], object]) -> Rate:
    started, cpu = time.perf_counter(), cpu_seconds()
    work()
    return Rate(images / (time.perf_counter() - started), 1000 * (cpu_seconds() - cpu) / images)


def cpu_seconds() -> float:
    """CPU time of this process. Worker processes are children of the fork server, so their time is not included."""
    times = os.times()
    return times.user + times.system


def pipeline_rate(data: Dataset, kind: str, workers: int, args: argparse.Namespace, order: str) -> Rate:
    """The rate of the loader, including the start of the workers."""
    batch, batches = args.batch, args.batches
    loader = TrainLoader(data, *stage(kind, workers, batch, order))
    loader.positions = np.tile(loader.positions, -(-batches * batch // len(loader.positions)))  # a long epoch, not several
    loader.steps_per_epoch = batches
    return measured(batches * batch, lambda: deque(loader.epoch(0), maxlen=0))


def decode_rate(rows: list[bytes], workers: int) -> Rate:
    """The rate of decoding alone, on threads (outside Python's global lock): the limit of the machine."""
    with ThreadPoolExecutor(workers) as pool:
        return measured(len(rows), lambda: deque(pool.map(simplejpeg.decode_jpeg, rows), maxlen=0))


class Clock:
    """CPU time by name."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.process_time()

    def lap(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name] += now - self._last
        self._last = time.process_time()


def breakdown(data: Dataset, batch: int, epochs: int) -> dict[str, float]:
    """Milliseconds of CPU time per image and operation, in one thread."""
    loader = TrainLoader(data, *stage("thread", 1, batch))
    transform, clock, count = loader.transform, Clock(), epochs * len(loader.positions) // batch * batch
    images, labels = np.empty((batch, 3, transform.size, transform.size), np.float32), np.zeros(batch, np.int64)
    for number, (position, label, row) in enumerate(read_rows(data, "train", np.tile(loader.positions, epochs)[:count])):
        clock.lap("read")
        drawn = draw(transform, row, sample_rng(0, number // len(loader.positions), position), clock)
        transform.finish(drawn, images[number % batch])
        labels[number % batch] = label
        clock.lap("normalise, erase")
        if number % batch == batch - 1:
            apply_mixup(images, labels, loader.mixing(0, number // batch), CLASSES, 0.1)
            clock.lap("mix")
    return {name: 1000 * seconds / count for name, seconds in clock.seconds.items()}


def draw(transform: TrainTransform, row: bytes, rng: np.random.Generator, clock: Clock) -> Drawn:
    """TrainTransform.draw, timed step by step."""
    image = EncodedImage(row)
    box, bicubic = transform.crop.draw(rng, *image.size), transform.draw_filter(rng) == "bicubic"
    mirrored = rng.random() < transform.hflip
    clock.lap("header, crop's draw")
    frame = image.frame(transform.mode)
    clock.lap("decode")
    pixels = resize_crop(frame, box, (transform.size,) * 2, bicubic=bicubic, mirrored=mirrored)
    clock.lap("crop, resize, flip")
    pixels = transform.augment(pixels, rng)
    clock.lap("RandAugment")
    patches = transform.erase.patches(rng, *pixels.shape)
    clock.lap("erasing's draw")
    return Drawn(pixels, patches)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("benchmarks/data"), help="where the images are kept (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=400, help="different images (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=sorted({1, cores, 2 * cores}), help="numbers of workers")
    parser.add_argument("--kind", nargs="+", choices=("thread", "process"), default=("thread", "process"))
    parser.add_argument("--order", nargs="+", choices=ORDERS, default=("report",), help="of augmentation (default: report)")
    parser.add_argument("--batch", type=int, default=128, help="images per batch (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=12, help="batches per measurement (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the load average shows how busy the machine was."""
    args = parse(argv)
    data = dataset(args.folder, args.images)
    rows = [row for _, _, row in read_rows(data, "train", np.arange(data.images("train")))]
    cores = len(os.sched_getaffinity(0))
    compile_kernels()  # once per machine
    print(f"{len(rows)} images, {sum(map(len, rows)) / len(rows) / 1000:.0f} kB on average, {cores} cores")
    rates: dict[str, list[Rate]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    for _ in range(args.repeat):
        limit = decode_rate(rows, cores)
        rates[f"decoding alone, {cores} threads"].append(limit)
        for order, kind, workers in itertools.product(args.order, args.kind, args.workers):
            name = f"{order}'s order, {workers} {kind}{'s' if kind == 'thread' else 'es'}"
            rates[name].append(pipeline_rate(data, kind, workers, args, order))
            shares[name].append(rates[name][-1].images / limit.images)
    for name, values in rates.items():
        images, cpu = ([getattr(rate, key) for rate in values] for key in Rate._fields)
        share = f"   {statistics.median(shares[name]):.2f} of decoding alone" if name in shares else ""
        where = " in the main process" if name.endswith("processes") else ""
        time_text = f"   {statistics.median(cpu):.2f} ms of CPU time per image{where}"
        print(
            f"{name:28} {statistics.median(images):6.0f} images/s (from {min(images):.0f} to {max(images):.0f}){share}{time_text}"
        )
    parts = breakdown(data, args.batch, args.repeat)
    print("CPU time per image in one thread:")
    for name, milliseconds in parts.items():
        print(f"  {name:24} {milliseconds:6.3f} ms   {milliseconds / sum(parts.values()):4.0%}")
    print(f"  {'all':24} {sum(parts.values()):6.3f} ms")
    print("load average over 1, 5 and 15 minutes:", *(f"{load:.1f}" for load in os.getloadavg()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
