"""Prediction: the same numbers as the network on the same pixels, every odd file handled or reported, none stops the rest."""

import argparse
import csv
import dataclasses
import io
import json
import os

import mindspore as ms
import numpy as np
import pytest
from networks import cut
from PIL import Image

from cswin.checkpoint import Checkpoint, CheckpointRecord, Preprocessing, save_checkpoint
from cswin.commands import predict as command
from cswin.distributed.backend import BACKENDS
from cswin.errors import BadImage, UserError
from cswin.model.cswin import CSWin
from cswin.model.variants import Architecture
from cswin.model.weights import initial_weights
from cswin.predict import Classifier, ImageReader, find_images, predict

ARCH = Architecture(8, (1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 2), image_size=32, num_classes=7)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = Preprocessing(32, 1.0, MEAN, STD)
NAMES = ("tench", "grey “whale”", "海豚", "a, b", "n02012849", "n03126707", "g")
WORDS = {"n02012849": "crane", "n03126707": "crane"}  # of ImageNet's classes


@pytest.fixture(scope="module")
def checkpoint():
    start = initial_weights(ARCH, np.random.default_rng(0))
    weights = {name: value * np.float32(5 if "head" in name else 1) for name, value in start.items()}
    ema = {k: v * np.float32(1.5) for k, v in weights.items()}
    return Checkpoint(CheckpointRecord(ARCH, NAMES, PREPROCESSING), weights, ema)


@pytest.fixture(scope="module")
def classifier(checkpoint):
    return Classifier(checkpoint, 3, BACKENDS["CPU"])


def picture(seed=0, size=(32, 32)):
    """Smooth colours, so that compression changes little."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def normalised(image):
    """The definition, in float64."""
    return ((np.asarray(image.convert("RGB")) / 255 - MEAN) / STD).transpose(2, 0, 1)


def test_probabilities_are_the_softmax_of_the_averaged_network(checkpoint, classifier):
    network = CSWin(ARCH)
    images = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    logits = network(ms.Tensor(images), cut(network, checkpoint.ema)).asnumpy().astype(np.float64)
    wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(classifier.outputs(images)[1], wanted, rtol=1e-5)
    for guesses, row in zip(classified(classifier, images, 3), wanted, strict=True):
        assert [g.label for g in guesses] == sorted(range(7), key=lambda i: -row[i])[:3]
        assert [g.name for g in guesses] == [NAMES[g.label] for g in guesses]
        np.testing.assert_allclose([g.probability for g in guesses], np.sort(row)[::-1][:3], rtol=1e-5)
    assert len(classified(classifier, images, 100)[0]) == 7


def classified(classifier, images, top_k):
    return classifier.guesses(classifier.outputs(images)[1], top_k)


def test_a_network_that_has_diverged_is_refused(checkpoint, classifier, monkeypatch):
    broken = dict(checkpoint.ema) | {"norm.bias": np.full(64, np.nan, np.float32)}
    monkeypatch.setattr(classifier, "weights", classifier.predictor.on_device(broken))
    with pytest.raises(UserError, match="outputs are not finite with the ema weights"):
        classifier.outputs(np.zeros((1, 3, 32, 32), np.float32))


def save_all(folder):
    """The same picture in many encodings."""
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "plain.png")
    image.save(folder / "quality.jpg", quality=95)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.convert("RGBA").save(folder / "alpha.png")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", quality=95, exif=exif)
    image.save(folder / "webp.webp", lossless=True)
    return image


def test_encodings_give_the_same_pixels(tmp_path):
    image = save_all(tmp_path)
    reader = ImageReader(PREPROCESSING)
    wanted = normalised(image)
    for path in sorted(tmp_path.iterdir()):
        found = reader(path)
        assert found.dtype == np.float32 and found.shape == (3, 32, 32)
        exact = path.suffix in (".png", ".webp")
        assert np.abs(found - wanted).max() < (1e-5 if exact else 0.25), path.name
    unturned = ImageReader(PREPROCESSING, upright=False)(tmp_path / "turned.jpg")
    assert np.abs(unturned - wanted).max() > 0.5
    assert np.abs(unturned - normalised(image.transpose(Image.Transpose.ROTATE_90))).max() < 0.25


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation(tmp_path, orientation):
    """The standard's own words: where the image's first row and first column lie as seen."""
    pixels = np.asarray(picture(3))
    seen = {  # rows and columns of the stored array from the upright one
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.transpose(1, 0, 2), 6: np.rot90(pixels), 7: np.rot90(pixels.transpose(1, 0, 2), 2), 8: np.rot90(pixels, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(seen[orientation])).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(ImageReader(PREPROCESSING)(tmp_path / "a.png"), normalised(picture(3)), atol=1e-5)


def test_sixteen_bits_palettes_and_grey(tmp_path):
    grey = np.asarray(picture().convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    picture().quantize(16).save(tmp_path / "palette.png")
    reader = ImageReader(PREPROCESSING)
    np.testing.assert_allclose(reader(tmp_path / "deep.png"), normalised(Image.fromarray(grey)), atol=1e-5)
    np.testing.assert_allclose(reader(tmp_path / "grey.png"), normalised(Image.fromarray(grey)), atol=1e-5)
    np.testing.assert_allclose(reader(tmp_path / "palette.png"), normalised(picture().quantize(16)), atol=1e-5)
    one = ImageReader(Preprocessing(32, 1.0, (0.5,), (0.25,), channels=1))
    np.testing.assert_allclose(one(tmp_path / "grey.png"), (grey[None] / 255 - 0.5) / 0.25, atol=1e-5)


def broken_files(folder):
    data = io.BytesIO()
    picture(size=(300, 200)).save(data, "JPEG")
    (folder / "cut.jpg").write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    Image.new("RGB", (1, 70000)).save(folder / "thin.png")
    (folder / "folder.jpg").mkdir()
    return ["cut.jpg", "empty.png", "missing.jpg", "text.jpg", "thin.png"]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_spoil_the_image(tmp_path):
    picture().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff junk")
    assert ImageReader(PREPROCESSING)(tmp_path / "a.jpg").shape == (3, 32, 32)


def test_broken_files_stop_nothing(tmp_path, classifier):
    bad = broken_files(tmp_path)
    for i in range(5):
        picture(i).save(tmp_path / f"{i}.png")
    reader = ImageReader(PREPROCESSING)
    paths = [tmp_path / n for pair in zip([f"{i}.png" for i in range(5)], bad, strict=True) for n in pair]
    found = list(predict(paths, classifier, reader, 2, 2))
    assert [p.path for p in found] == paths
    for i, prediction in enumerate(found):
        if i % 2:
            assert prediction.error and not prediction.guesses, prediction.path
        else:
            alone = classified(classifier, normalised(picture(i // 2))[None].astype(np.float32), 2)[0]
            assert prediction.error is None and [g.label for g in prediction.guesses] == [g.label for g in alone]
            np.testing.assert_allclose([g.probability for g in prediction.guesses], [g.probability for g in alone], rtol=1e-4)
    assert list(predict([tmp_path / "text.jpg"], classifier, reader, 2, 1))[0].error


def test_an_unforeseen_error_stops_nothing(tmp_path, classifier):
    picture().save(tmp_path / "a.png")

    def reader(path):
        if path.name == "b":
            raise MemoryError("too large")
        return ImageReader(PREPROCESSING)(path)

    found = list(predict([tmp_path / "b", tmp_path / "a.png"], classifier, reader, 1, 1))
    assert "MemoryError" in found[0].error and found[1].guesses


def test_find_images(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a/c/3.webp", "a/notes.txt", ".hidden/4.png", "a/.5.png", "z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, passed_over = find_images([tmp_path])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["z.png", "a/c/3.webp", "b/1.png", "b/2.JPG"]
    assert passed_over == [tmp_path / "a/notes.txt"]
    given = [tmp_path / "a/notes.txt", tmp_path / "b", tmp_path / "b/1.png"]
    assert find_images(given) == ([tmp_path / "a/notes.txt", tmp_path / "b/1.png", tmp_path / "b/2.JPG"], [])
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="void: holds no image"):
        find_images([tmp_path / "b", tmp_path / "void"])


def test_linked_folders_and_files_without_a_suffix_are_found(tmp_path):
    """As cameras' cards, data sets of links, and content-addressed stores have them."""
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for name in ("photos/2.png", "elsewhere/deep/3.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        picture().save(tmp_path / name)
    picture().save(photos / "1", "JPEG")
    (photos / "README").write_text("not an image")
    os.mkfifo(photos / "pipe")
    (photos / "linked").symlink_to(elsewhere)
    (elsewhere / "deep/loop").symlink_to(photos)
    (photos / "again").symlink_to(photos / "linked/deep")
    found, passed_over = find_images([photos])
    assert found == [photos / "1", photos / "2.png", photos / "again/3.png"], "each once, and the loop ends"
    assert passed_over == [photos / "README", photos / "pipe"]


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(a) for a in arguments]))


def test_command(tmp_path, checkpoint, classifier, capsys, monkeypatch):
    path, images = tmp_path / "model.safetensors", tmp_path / "images"
    images.mkdir()
    save_checkpoint(path, checkpoint)
    picture(0).save(images / "a.png")
    picture(1).save(os.fsdecode(os.fsencode(images) + b"/b\xff.png"))
    (images / "c.jpg").write_text("not an image")
    wanted = [classified(classifier, normalised(picture(i))[None].astype(np.float32), 7)[0] for i in range(2)]

    assert run(images / "a.png", "--checkpoint", path, "--top-k", 7) == 0
    out = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("%  crane") for line in out) == 2
    assert out == [str(images / "a.png"), *(f"  {100 * g.probability:6.2f} %  {WORDS.get(g.name, g.name)}" for g in wanted[0])]

    monkeypatch.setattr("cswin.predict.Classifier", lambda *_: classifier)  # is compiled already
    features = ["--features", tmp_path / "f.npz"]
    assert run(images, "--checkpoint", path, "--top-k", 2, "--output", tmp_path / "p.csv", *features) == 1
    with (tmp_path / "p.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["file"].rsplit("/")[-1], r["rank"]) for r in rows] == [
        ("a.png", "1"), ("a.png", "2"), ("b\\xff.png", "1"), ("b\\xff.png", "2"), ("c.jpg", "")]  # fmt: skip
    with np.load(tmp_path / "f.npz") as saved:
        assert [name.rsplit("/")[-1] for name in saved["files"]] == ["a.png", "b\\xff.png"]
        assert saved["features"].dtype == np.float32 and saved["features"].shape == (2, ARCH.dims[3])
        logits = saved["features"] @ checkpoint.ema["head.weight"].T + checkpoint.ema["head.bias"]
        assert [g.label for g in wanted[0]] == np.argsort(-logits[0]).tolist()
        np.testing.assert_allclose(np.exp(logits[1]).max() / np.exp(logits[1]).sum(), wanted[1][0].probability, rtol=1e-4)
    best = [g.name for guesses in wanted for g in guesses[:2]]
    assert [(r["name"], r["words"]) for r in rows[:4]] == [(name, WORDS.get(name, name)) for name in best]
    assert rows[4]["error"] and not rows[0]["error"]
    err = capsys.readouterr().err
    assert "c.jpg: " in err and "1 of 3 files could not be read" in err and "were ignored" not in err
    (images / "notes.txt").touch()

    assert run(images, "--checkpoint", path, "--top-k", 2, "--format", "jsonl") == 1
    out, err = capsys.readouterr()
    assert "1 files are not images, judging by suffix and content, and were ignored: " in err and "notes.txt" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [g["class"] for g in lines[1]["top"]] == [g.label for g in wanted[1][:2]]
    np.testing.assert_allclose(lines[0]["top"][0]["probability"], wanted[0][0].probability, rtol=1e-5)
    assert "error" in lines[2] and "top" not in lines[2]


@pytest.mark.parametrize("which", [None, "ema"])
def test_the_set_that_selected_the_epoch_predicts(tmp_path, checkpoint, capsys, which):
    network, image = CSWin(ARCH), ms.Tensor(normalised(picture(0))[None].astype(np.float32))
    logits = {name: network(image, cut(network, getattr(checkpoint, name))).asnumpy()[0] for name in ("weights", "ema")}
    wanted = logits["ema" if which else "weights"].astype(np.float64)
    provenance = {"config": {"evaluation": {"select_by": "raw"}}}
    record = dataclasses.replace(checkpoint.record, provenance=provenance)
    save_checkpoint(tmp_path / "m.safetensors", dataclasses.replace(checkpoint, record=record))
    picture(0).save(tmp_path / "a.png")
    options = ["--which", which] if which else []
    assert run(tmp_path / "a.png", "--checkpoint", tmp_path / "m.safetensors", "--format", "jsonl", *options) == 0
    out, err = capsys.readouterr()
    top = json.loads(out)["top"]
    softmax = np.exp(wanted) / np.exp(wanted).sum()
    np.testing.assert_allclose([g["probability"] for g in top], np.sort(softmax)[::-1][:5], rtol=1e-4)
    assert f"m.safetensors: {which or 'raw'} weights" in err


def test_wrong_arguments(tmp_path, checkpoint):
    picture().save(tmp_path / "a.png")
    save_checkpoint(tmp_path / "m.safetensors", checkpoint)
    for arguments, message in (
        (["--checkpoint", tmp_path / "none.ckpt"], "none.ckpt: is not a file"),
        (["--checkpoint", tmp_path / "m.safetensors", "--top-k", 0], "--top-k"),
        (["--checkpoint", tmp_path / "m.safetensors", "--features", tmp_path / "f.csv"], "give it the suffix .npz"),
        (["--checkpoint", tmp_path / "m.safetensors", "--crop-ratio", 2], "crop_ratio"),
        (["--checkpoint", tmp_path / "m.safetensors", "--device-target", "Ascend"], "device Ascend 0 cannot be used"),
        (["--checkpoint", tmp_path / "m.safetensors", "--output", tmp_path / "no" / "a.csv"], "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path / "a.png", *arguments)
    with pytest.raises(UserError, match="5 channels"):
        ImageReader(Preprocessing(32, 1.0, (0,) * 5, (1,) * 5, channels=5))
    with pytest.raises(BadImage, match="regular"):
        ImageReader(PREPROCESSING)(tmp_path)
