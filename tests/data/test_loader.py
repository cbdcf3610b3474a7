"""Batches: the same bytes however they are made, every image where it belongs, errors with their place, no worker left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import recipes
from converted import converted
from image_trees import image_bytes

from cswin.data.augment.mixup import apply_mixup, draw_mixup
from cswin.data.augment.transforms import TrainTransform
from cswin.data.images.evaluation import EvalTransform
from cswin.data.images.preprocessing import Preprocessing
from cswin.data.loader.batches import EvalTask, TrainLoader, eval_batches, training_positions
from cswin.data.loader.rng import batch_rng, order_rng, sample_rng
from cswin.data.loader.workers import in_order, worker_pool
from cswin.data.store.dataset import read_rows
from cswin.errors import BadImage, UserError

IMAGES, CLASSES, GLOBAL = 100, 4, 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """100 training and 14 validation images of four classes."""
    files = {f"train/c{n % CLASSES}/{n}.JPEG": image_bytes(n, size=(40 + n % 7, 36)) for n in range(IMAGES)}
    files |= {f"val/c{n % CLASSES}/{n}.JPEG": image_bytes(1000 + n) for n in range(14)}
    return converted(tmp_path_factory.mktemp("data"), files)


def settings(devices=1, accumulation=1, workers=2, kind="thread", **sections):
    changes = {
        "data": {"source": "folder", "folder": "images", "classes": CLASSES},
        "model": {"arch": "cswin_32_1121_digits_32"},
        "augment": {"mixup_group": 8, "erase_prob": 0.5},
        "optimizer": {"global_batch": GLOBAL},
        "schedule": {"warmup_length": 0},
        "stages": {"only": {"start_epoch": 0, "epochs": 3}},
        "runtime": {
            "devices": devices, "accumulation": accumulation, "batch_size": GLOBAL // (devices * accumulation),
            "workers": workers, "worker_kind": kind, "eval_batch_size": 6, "prefetch": 2,
        },
    }  # fmt: skip
    for name, keys in sections.items():
        changes[name] = {**changes.get(name, {}), **keys}
    return recipes.stage(seed=5, **changes)


def loader(dataset, rank=0, **options) -> TrainLoader:
    return TrainLoader(dataset, *settings(**options), rank)


def steps(loader: TrainLoader, epoch=1, first_step=0) -> list[list[tuple[bytes, bytes]]]:
    return [[(b.images.tobytes(), b.targets.tobytes()) for b in step] for step in loader.epoch(epoch, first_step)]


def whole_batches(dataset, **options) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and targets of each step, by their position in the global batch, from all devices and micro-batches."""
    devices = options.get("devices", 1)
    parts = [list(loader(dataset, rank, **options).epoch(1)) for rank in range(devices)]
    batches = []
    for step in range(len(parts[0])):
        micro = [batch for part in parts for batch in part[step]]
        columns = np.concatenate([batch.columns for batch in micro])
        assert sorted(columns) == list(range(GLOBAL))
        order = np.argsort(columns)
        batches.append(tuple(np.concatenate([getattr(b, name) for b in micro])[order] for name in ("images", "targets")))
    return batches


# The same bytes


@pytest.mark.parametrize(("kind", "workers"), [("thread", 2), ("thread", 8), ("process", 1), ("process", 2), ("process", 8)])
def test_batches_do_not_depend_on_the_workers(dataset, kind, workers):
    expected = steps(loader(dataset, workers=1))
    assert len(expected) == IMAGES // GLOBAL == 6
    assert len({images for step in expected for images, _ in step}) == 6
    assert steps(loader(dataset, kind=kind, workers=workers)) == expected


@pytest.mark.parametrize("first_step", [1, 5, 6])
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_an_epoch_entered_in_its_middle_goes_on_with_the_same_batches(dataset, first_step, kind):
    assert steps(loader(dataset, kind=kind), 2, first_step) == steps(loader(dataset), 2)[first_step:]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("split", [(2, 1), (1, 2), (2, 2), (4, 1), (8, 1), (2, 4)])
def test_batches_do_not_depend_on_the_split(dataset, split, mode):
    """Over devices and accumulation; a part may hold less than a mixup group, one, or several."""
    augment = {"mixup_group": 8, "mixup_mode": mode}
    expected = whole_batches(dataset, augment=augment)
    found = whole_batches(dataset, devices=split[0], accumulation=split[1], augment=augment)
    for (images, targets), (expected_images, expected_targets) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(targets, expected_targets)


@pytest.mark.parametrize("split", [(2, 1), (1, 2), (8, 1)])
def test_batches_erased_after_mixing_do_not_depend_on_the_split(dataset, split):
    augment = {"mixup_group": 8, "erase": "after_mixing", "erase_prob": 1.0}
    expected = whole_batches(dataset, augment=augment)
    found = whole_batches(dataset, devices=split[0], accumulation=split[1], augment=augment)
    for (images, targets), (expected_images, expected_targets) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(targets, expected_targets)


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_erased_after_mixing(dataset, cutmix):
    """Rounded bytes of both partners, normalised; then each row's own boxes over them."""
    augment = {"erase": "after_mixing", "erase_prob": 1.0, "switch_prob": 1.0 if cutmix else 0.0, "mixup_group": GLOBAL}
    config, runtime = settings(augment=augment)
    loader = TrainLoader(dataset, config, runtime)
    rows = {position: data for position, _, data in read_rows(dataset, "train", np.arange(IMAGES))}
    positions = order_rng(5, 1).permutation(IMAGES)[:GLOBAL]
    drawn = [loader.transform.draw(rows[p], sample_rng(5, 1, int(p))) for p in positions]
    mixing, own = loader.mixing(1, 0), np.stack([sample.pixels for sample in drawn]).astype(np.float32)
    assert mixing.is_cutmix.all() == bool(cutmix) and mixing.mixes
    if cutmix:
        mixed, (top, bottom, left, right) = own.copy(), mixing.box[0]
        mixed[:, :, top:bottom, left:right] = own[::-1, :, top:bottom, left:right]
    else:
        mixed = np.rint(own * np.float32(mixing.lam[0]) + own[::-1] * np.float32(1 - mixing.lam[0]))
    (batch,) = next(iter(loader.epoch(1)))
    for image, pixels, sample in zip(batch.images, mixed.astype(np.uint8), drawn, strict=True):
        expected = loader.transform.normalise(pixels)
        for box, fill in sample.patches:
            expected[:, box.top : box.top + box.height, box.left : box.left + box.width] = fill
        np.testing.assert_array_equal(image, expected)


def test_evaluation_is_bicubic_where_training_draws_the_filter():
    assert EvalTransform(Preprocessing.of_stage(settings(augment={"interpolation": "random"})[0])).bicubic
    assert not EvalTransform(Preprocessing.of_stage(settings(augment={"interpolation": "bilinear"})[0])).bicubic


def test_epochs_and_seeds_differ(dataset):
    config, runtime = settings()
    other = TrainLoader(dataset, config.model_copy(update={"seed": 6}), runtime)
    assert len({steps(loader(dataset), epoch)[0][0][0] for epoch in (0, 1)} | {steps(other, 0)[0][0][0]}) == 3


# What is in a batch


def test_a_batch_is_its_parts_put_together(dataset):
    """From the order, the sample's and the batch's streams, the transform and the mixing, without the loader."""
    config, runtime = settings()
    rows = {position: (label, data) for position, label, data in read_rows(dataset, "train", np.arange(IMAGES))}
    order = order_rng(5, 1).permutation(IMAGES)
    transform = TrainTransform(Preprocessing.of_stage(config), config.augment)
    for step, micro_batches in enumerate(TrainLoader(dataset, config, runtime).epoch(1)):
        (batch,) = micro_batches
        positions = order[step * GLOBAL : (step + 1) * GLOBAL]
        for group in range(2):
            members = positions[8 * group : 8 * group + 8]
            images = np.stack([transform(rows[p][1], sample_rng(5, 1, int(p))) for p in members])
            labels = np.array([rows[p][0] for p in members])
            mixing = draw_mixup(
                batch_rng(5, 1, step, group),
                8,
                (32, 32),
                config.augment,
            )
            images, targets = apply_mixup(images, labels, mixing, CLASSES, 0.1)
            where = [list(batch.columns).index(8 * group + i) for i in range(8)]
            np.testing.assert_array_equal(batch.images[where], images)
            np.testing.assert_array_equal(batch.targets[where], targets)


PLAIN = {"mixup": 0.0, "cutmix": 0.0, "rand_augment": None, "erase_prob": 0.0, "hflip": 0.0, "label_smoothing": 0.0}


@pytest.fixture
def seen_positions(monkeypatch):
    """Positions that the loader reads, by epoch, in order."""
    asked = []

    def record(dataset, split, positions):
        asked.append((split, np.asarray(positions)))
        return read_rows(dataset, split, positions)

    monkeypatch.setattr("cswin.data.loader.batches.read_rows", record)
    return asked


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_order_is_a_permutation_shared_out_without_overlap(dataset, seen_positions, devices):
    for epoch in (0, 1):
        seen_positions.clear()
        for rank in range(devices):
            list(loader(dataset, rank, devices=devices, augment=PLAIN).epoch(epoch))
        read = np.concatenate([positions for _, positions in seen_positions])
        assert len(read) == 96 == len(set(read))  # six whole batches; which four are left out changes with the epoch
        assert set(read) == set(order_rng(5, epoch).permutation(IMAGES)[:96])
    sizes = {len(positions) for _, positions in seen_positions}
    assert sizes == {96 // devices}


def test_rows_of_earlier_steps_are_not_read(dataset, seen_positions):
    list(loader(dataset).epoch(1, 4))
    ((_, positions),) = seen_positions
    assert len(positions) == 2 * GLOBAL


@pytest.mark.parametrize("devices", [1, 2])
def test_held_out_images_are_never_trained_on(dataset, seen_positions, devices):
    held = {"select_on": "minival", "minival_images": 20}
    config, _ = settings(evaluation=held)
    train, minival = training_positions(IMAGES, config)
    assert len(minival) == 20 == len(set(minival))
    assert sorted([*train, *minival]) == list(range(IMAGES))
    assert not np.array_equal(minival, np.arange(20)) and not np.array_equal(minival, np.arange(80, 100))
    trained = set()
    for epoch in range(3):
        for rank in range(devices):
            made = loader(dataset, rank, devices=devices, evaluation=held)
            assert made.steps_per_epoch == 80 // GLOBAL
            list(made.epoch(epoch))
    for _, positions in seen_positions:
        trained |= set(positions.tolist())
    assert trained == set(train.tolist())


def test_labels_stay_with_their_images(dataset):
    """Without any augmentation each image of a batch is found again among the files, with its label."""
    config, runtime = settings(augment=PLAIN | {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]})
    transform = TrainTransform(Preprocessing.of_stage(config), config.augment)
    known = {}
    for _, label, data in read_rows(dataset, "train", np.arange(IMAGES)):
        known[transform(data, np.random.default_rng(0)).tobytes()] = label
    found = 0
    for (batch,) in TrainLoader(dataset, config, runtime).epoch(0):
        for image, target in zip(batch.images, batch.targets, strict=True):
            label = known.get(image.tobytes())
            if label is not None:  # a crop of all of the area is the central one, so most are the same for any draw
                found += 1
                assert target.tolist() == [float(c == label) for c in range(CLASSES)]
    assert found > 60


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_evaluation_gives_every_image_once_in_order(dataset, kind):
    config, runtime = settings(kind=kind)
    transform = EvalTransform(Preprocessing.of_stage(config))
    batches = list(eval_batches(read_rows(dataset, "val", np.arange(14)), EvalTask(transform), runtime))
    assert [len(batch.labels) for batch in batches] == [6, 6, 2]
    rows = list(read_rows(dataset, "val", np.arange(14)))
    np.testing.assert_array_equal(np.concatenate([b.images for b in batches]), [transform(data) for _, _, data in rows])
    assert np.concatenate([b.labels for b in batches]).tolist() == [label for _, label, _ in rows]
    assert np.concatenate([b.positions for b in batches]).tolist() == list(range(14))


# Errors and ends


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_broken_image_is_named_after_the_batches_before_it(dataset, kind, monkeypatch):
    order = order_rng(5, 0).permutation(IMAGES)
    bad = int(order[2 * GLOBAL + 3])

    def broken(dataset, split, positions):
        for position, label, data in read_rows(dataset, split, positions):
            yield position, label, data[:200] if position == bad else data

    monkeypatch.setattr("cswin.data.loader.batches.read_rows", broken)
    batches = loader(dataset, kind=kind).epoch(0)
    assert len([next(batches) for _ in range(2)]) == 2
    with pytest.raises(BadImage, match=rf"training image {bad}: .*on_bad_image"):
        next(batches)
    config, runtime = settings(kind=kind)
    with pytest.raises(BadImage, match="validation image 7: image is empty"):
        list(
            eval_batches(
                ((p, 0, b"" if p == 7 else image_bytes(p)) for p in range(9)),
                EvalTask(EvalTransform(Preprocessing.of_stage(config))),
                runtime,
            )
        )


def test_an_error_while_reading_rows_is_raised(dataset, monkeypatch):
    def failing(dataset, split, positions):
        yield from read_rows(dataset, split, positions[:20])
        raise UserError("train-00000.mindrecord: is damaged")

    monkeypatch.setattr("cswin.data.loader.batches.read_rows", failing)
    with pytest.raises(UserError, match="is damaged"):
        list(loader(dataset).epoch(0))


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_nothing_is_left_when_the_consumer_stops_early(dataset, kind):
    before = set(threading.enumerate())
    batches = loader(dataset, kind=kind, workers=3).epoch(0)
    next(batches)
    children = {child.pid for child in multiprocessing.active_children()}
    batches.close()
    left = [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]
    assert not left
    assert not {child.pid for child in multiprocessing.active_children()} & children
    assert len(children) == (3 if kind == "process" else 0)


def test_a_killed_worker_is_an_error_with_a_remedy():
    with worker_pool("process", 1) as pool, pytest.raises(UserError, match=r"was killed.*runtime\.workers"):
        list(in_order(pool, os._exit, [1], 4))


def signalled(number: int) -> int:
    """Runs in a worker: it sends itself a signal and lives on."""
    os.kill(os.getpid(), number)
    time.sleep(0.05)
    return number


def test_workers_live_on_when_a_cluster_signals_all_processes():
    numbers = [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM] * 3
    with worker_pool("process", 1) as pool:
        assert list(in_order(pool, signalled, numbers, 4)) == numbers


def test_workers_end_with_a_killed_trainer(dataset):
    script = textwrap.dedent("""
        import multiprocessing, sys, time
        from cswin.data.loader.workers import in_order, worker_pool

        if __name__ == "__main__":
            with worker_pool("process", 2) as pool:
                results = in_order(pool, abs, range(10_000), 64)
                next(results)
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                time.sleep(60)
    """)
    path = Path(dataset.path).parent / "script.py"
    path.write_text(script)
    trainer = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in trainer.stdout.readline().split()]
    assert len(workers) == 2
    assert all(alive(pid) for pid in workers)
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_workers_do_not_import_mindspore():
    code = "import sys, cswin.data.loader.batches; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
