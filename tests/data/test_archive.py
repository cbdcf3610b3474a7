"""Extraction of the report's archive: the same bytes come out, nothing dangerous gets in, a killed one goes on."""

import gzip
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from image_trees import read_tree, small_files, tar_bytes, write_tar, write_tree

import cswin.data.sources.members as archive_module
from cswin.data.sources.archive import Archive
from cswin.data.sources.extraction import extract as extract_source
from cswin.data.sources.recognise import open_source
from cswin.data.sources.tree_writer import remove_tree
from cswin.errors import UserError
from cswin.progress import Console

FILES = small_files()


def extract(archive: Path, folder: Path, **options) -> dict:
    return extract_source(Archive(archive), folder / "images", folder / "receipt.json", Console(), **options)


def refused(archive: Path, folder: Path) -> str:
    """The message with which an archive is refused; nothing may look like a result."""
    with pytest.raises(UserError) as caught:
        extract(archive, folder)
    assert not (folder / "images").exists() and not (folder / "receipt.json").exists()
    return str(caught.value)


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("top", ["", "./", "imagenet/", "./imagenet/"])
def test_every_file_comes_out(tmp_path, suffix, top):
    archive = write_tar(tmp_path / f"a.{suffix}", {top + name: data for name, data in FILES.items()})
    receipt = extract(archive, tmp_path)
    assert read_tree(tmp_path / "images") == FILES
    assert receipt["files"]["train/n01440764"] == 6 and sum(receipt["files"].values()) == len(FILES)
    assert not (tmp_path / "images.partial").exists()


def test_long_names(tmp_path):
    files = {f"train/{'c' * 90}/{'i' * 120}.JPEG": b"1", f"val/{'c' * 90}/ä b.JPEG": b"2"}
    extract(write_tar(tmp_path / "a.tar", files), tmp_path)
    assert read_tree(tmp_path / "images") == files


def test_files_that_are_no_images_are_left_out_and_listed(tmp_path):
    more = {"imagenet/README": b"x", "imagenet/train/n01440764/._x.JPEG": b"y", "imagenet/.DS_Store": b"z"}
    files = {f"imagenet/{name}": data for name, data in FILES.items()} | more
    receipt = extract(write_tar(tmp_path / "a.tar", files), tmp_path)
    assert read_tree(tmp_path / "images") == FILES
    assert receipt["ignored"] == {"count": 3, "first": list(more)}


DANGEROUS = [
    (member("train/n01440764/link", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
    (member("train/n01440764/hard", tarfile.LNKTYPE, "train/n01440764/n01440764_0.JPEG"), "hard link"),
    (member("train/n01440764/pipe", tarfile.FIFOTYPE), "pipe"),
    (member("train/n01440764/dev", tarfile.CHRTYPE), "device"),
    (member("train/../../outside.JPEG", tarfile.REGTYPE), "leads out"),
    (member("train/n01440764/../../../outside.JPEG", tarfile.REGTYPE), "leads out"),
    (member("/train/n01440764/outside.JPEG", tarfile.REGTYPE), "leads out"),
    (member("other/link", tarfile.SYMTYPE, ".."), "symbolic link"),
]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize(("info", "why"), DANGEROUS, ids=[info.name for info, _ in DANGEROUS])
def test_dangerous_members_are_refused_by_name(tmp_path, suffix, info, why):
    inside = tmp_path / "inside"
    archive = write_tar(tmp_path / f"a.{suffix}", FILES, [info])
    message = refused(archive, inside)
    assert repr(info.name) in message and why in message
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "inside"}
    assert all(path.name != "outside.JPEG" for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train/a/x": b"", "val/a/x": b"", "./train/a/x": b""}, "'train/a/x' twice"),
        ({"one/train/a/x": b"", "two/train/a/y": b""}, "one top folder"),
        ({"train/x.JPEG": b""}, "not in a class folder"),
        ({"train/a/b/x.JPEG": b""}, "not in a class folder"),
        ({"train/a/x": b""}, "no val/"),
        ({"data/a/x": b""}, "no images"),
    ],
)
def test_other_layouts_are_refused(tmp_path, files, words):
    assert words in refused(write_tar(tmp_path / "a.tar", files), tmp_path)


def test_no_archive_at_all(tmp_path):
    assert "missing.tar" in refused(tmp_path / "missing.tar", tmp_path)
    (tmp_path / "page.tar").write_text("<html>404</html>" * 100)
    assert "neither a tar nor" in refused(tmp_path / "page.tar", tmp_path)


@pytest.mark.parametrize("cut", [100, 512 * 5 + 700, -10_000, -1024])
def test_archive_that_is_cut_off(tmp_path, cut):
    """Also at the end of a member and in place of the end mark, where tarfile sees nothing wrong."""
    data = tar_bytes(FILES).rstrip(b"\0")
    whole = data + b"\0" * (-len(data) % 512)
    (tmp_path / "a.tar").write_bytes(whole[:cut] if cut != -1024 else whole)
    message = refused(tmp_path / "a.tar", tmp_path)
    assert "a.tar" in message and ("cut off" in message or "neither" in message)


def test_header_damaged_in_the_middle(tmp_path):
    """tarfile's own iteration ends there in silence."""
    data = bytearray(tar_bytes(FILES))
    at = data.index(b"train/n02119789/n02119789_2.JPEG")
    data[at + 148 : at + 156] = b"00000000"  # the checksum
    (tmp_path / "a.tar").write_bytes(data)
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert len(archive.getnames()) < len(FILES)
    assert "n02119789_1.JPEG" in refused(tmp_path / "a.tar", tmp_path)


@pytest.mark.parametrize("share", [0.4, 0.98])
def test_gzip_that_is_cut_off(tmp_path, share):
    data = gzip.compress(tar_bytes(FILES), mtime=0)
    (tmp_path / "a.tar.gz").write_bytes(data[: int(share * len(data))])
    assert "a.tar.gz: is damaged or cut off" in refused(tmp_path / "a.tar.gz", tmp_path)


def test_gzip_with_a_wrong_checksum(tmp_path):
    data = bytearray(gzip.compress(tar_bytes(FILES), mtime=0))
    data[-8] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(data)
    assert "a.tar.gz: is damaged or cut off" in refused(tmp_path / "a.tar.gz", tmp_path)


KILLED = """
import os, signal, sys
import cswin.data.sources.members as archive
from cswin.data.sources.archive import Archive
from cswin.data.sources.extraction import extract
from cswin.progress import Console
from pathlib import Path

read, left = archive.read_data, [13]
def read_data(*args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*args)
archive.read_data = read_data
folder = Path(sys.argv[2])
extract(Archive(Path(sys.argv[1])), folder / "images", folder / "receipt.json", Console(), journal_seconds=0)
"""


def kill_at_the_thirteenth_image(archive: Path, folder: Path) -> None:
    code = subprocess.run([sys.executable, "-c", KILLED, str(archive), str(folder)], check=False).returncode
    assert code == -signal.SIGKILL
    assert not (folder / "images").exists() and not (folder / "receipt.json").exists()


def count_reads(monkeypatch) -> list:
    names, read = [], archive_module.read_data
    monkeypatch.setattr(archive_module, "read_data", lambda *args: names.append(args[2].name) or read(*args))
    return names


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_killed_extraction_goes_on(tmp_path, monkeypatch, suffix):
    archive = write_tar(tmp_path / f"a.{suffix}", FILES)
    kill_at_the_thirteenth_image(archive, tmp_path)
    names = count_reads(monkeypatch)
    receipt = extract(archive, tmp_path)
    assert names == list(FILES)[12:]
    assert read_tree(tmp_path / "images") == FILES
    assert receipt["files"] == extract(archive, tmp_path / "other")["files"]


def test_what_the_killed_process_wrote_last_is_written_again(tmp_path):
    archive = write_tar(tmp_path / "a.tar", FILES)
    kill_at_the_thirteenth_image(archive, tmp_path)
    write_tree(tmp_path / "images.partial", {list(FILES)[12]: b"half of it"})
    extract(archive, tmp_path)
    assert read_tree(tmp_path / "images") == FILES


def test_duplicates_are_found_across_a_kill(tmp_path):
    data = tar_bytes(FILES).rstrip(b"\0")
    data += b"\0" * (-len(data) % 512)
    (tmp_path / "a.tar").write_bytes(data + tar_bytes({next(iter(FILES)): b"another"}))
    kill_at_the_thirteenth_image(tmp_path / "a.tar", tmp_path)
    assert "duplicate names" in refused(tmp_path / "a.tar", tmp_path)


def test_another_archive_starts_anew(tmp_path):
    kill_at_the_thirteenth_image(write_tar(tmp_path / "a.tar", FILES), tmp_path)
    others = small_files(3, 1, ("b", "c"))
    extract(write_tar(tmp_path / "b.tar", others), tmp_path)
    assert read_tree(tmp_path / "images") == others


def test_whole_tree_is_not_extracted_again(tmp_path, monkeypatch):
    archive = write_tar(tmp_path / "a.tar", FILES)
    first = extract(archive, tmp_path)
    names = count_reads(monkeypatch)
    (tmp_path / "receipt.json").unlink()
    assert extract(archive, tmp_path) == first and names == []
    assert (tmp_path / "receipt.json").exists()


def test_tree_that_lost_a_file_is_extracted_again(tmp_path):
    archive = write_tar(tmp_path / "a.tar", FILES)
    extract(archive, tmp_path)
    (tmp_path / "images" / next(iter(FILES))).unlink()
    extract(archive, tmp_path)
    assert read_tree(tmp_path / "images") == FILES


def test_folder_of_somebody_else_is_left_alone(tmp_path):
    mine = write_tree(tmp_path / "images", {"thesis.txt": b"years"})
    with pytest.raises(UserError, match="was not made by"):
        extract(write_tar(tmp_path / "a.tar", FILES), tmp_path)
    with pytest.raises(UserError, match="is not removed"):
        remove_tree(mine)
    assert read_tree(mine) == {"thesis.txt": b"years"}


def test_disk_too_small(tmp_path, monkeypatch):
    archive = write_tar(tmp_path / "a.tar", FILES)
    usage = type("Usage", (), {"free": archive.stat().st_size})
    monkeypatch.setattr("cswin.data.disk.shutil.disk_usage", lambda path: usage)
    message = refused(archive, tmp_path)
    assert "free" in message and "extracting a.tar needs" in message


def test_full_disk_is_no_traceback(tmp_path, monkeypatch):
    def write(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cswin.data.sources.tree_writer.os.write", write)
    assert "make room" in refused(write_tar(tmp_path / "a.tar", FILES), tmp_path)


def test_two_at_once(tmp_path):
    from cswin.data.disk import exclusive

    archive = write_tar(tmp_path / "a.tar", FILES)
    with exclusive(tmp_path / "images.partial"):
        assert "another process" in refused(archive, tmp_path)
    extract(archive, tmp_path)


@pytest.mark.parametrize("missing", [1, 4, 8, 9, 12, 20, 30])
def test_gzip_that_lacks_its_last_bytes(tmp_path, missing):
    """The archive's end mark is there, but the checksum is not, or not whole."""
    data = gzip.compress(tar_bytes(FILES), mtime=0)
    (tmp_path / "a.tar.gz").write_bytes(data[:-missing])
    assert "a.tar.gz: is damaged or cut off" in refused(tmp_path / "a.tar.gz", tmp_path)


def test_gzip_of_several_streams(tmp_path):
    """The size at its end is that of the last stream alone."""
    data = tar_bytes(FILES)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data[:50_000], mtime=0) + gzip.compress(data[50_000:], mtime=0))
    extract(tmp_path / "a.tar.gz", tmp_path)
    assert read_tree(tmp_path / "images") == FILES


KAGGLE = {"ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_10040.xml": b"x"}
KAGGLE |= {f"ILSVRC/Data/CLS-LOC/{name}": data for name, data in FILES.items() if name.startswith("train")}
KAGGLE |= {f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{number:08d}.JPEG": b"x" for number in range(3)}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    ("files", "words"),
    [
        (KAGGLE, "Kaggle's layout"),
        (dict(list(KAGGLE.items())[1:]), "LOC_val_solution.csv"),
        ({"n01440764.tar": tar_bytes({"n01440764_1.JPEG": b"x"}), **FILES}, "data.source: ilsvrc2012"),
        ({"ILSVRC2012_val_00000001.JPEG": b"x", **FILES}, "data.source: ilsvrc2012"),
    ],
)
def test_other_layouts_are_recognised_at_their_first_member(tmp_path, monkeypatch, suffix, files, words):
    seen, members = [], archive_module.files
    monkeypatch.setattr(
        archive_module, "files", lambda *args: (seen.append(member.name) or member for member in members(*args))
    )
    with pytest.raises(UserError) as caught:
        open_source("archive", [write_tar(tmp_path / f"a.{suffix}", files)])
    message = str(caught.value)
    assert words in message and seen == [next(iter(files))]


def test_validation_images_without_class_folders(tmp_path):
    files = {"train/a/1.JPEG": b"x", "val/ILSVRC2012_val_00000001.JPEG": b"x"}
    message = refused(write_tar(tmp_path / "a.tar", files), tmp_path)
    assert "'val/ILSVRC2012_val_00000001.JPEG'" in message and "LOC_val_solution.csv" in message


def test_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + bytes(600))
    assert "is a zip file; unpack it" in refused(tmp_path / "a.zip", tmp_path)
