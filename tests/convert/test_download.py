"""Published weights from a server that truncates, stalls, lies about lengths, serves a wrong file, and supports ranges."""

import errno
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pooch
import pytest
import safetensors.numpy
import torch_files
from torch_files import Tensor, save
from weights_server import serve

from cswin.checkpoint import load_checkpoint
from cswin.cli import main
from cswin.convert import convert, download
from cswin.convert.published import PUBLISHED, RELEASE, Published, weights_layout
from cswin.model.variants import variant
from cswin.model.weights import initial_weights

NAME, ARCH = "cswin_test_32", "cswin_32_1121_digits_32"
KEPT = (f"{NAME}.safetensors", f"{NAME}.pth.sha256")


def weights(seed, **changes):
    return initial_weights(variant(ARCH).replace(**changes), np.random.default_rng(seed))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The published file; a file of another network; one that is no PyTorch file."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        torch_files.install(patch)
        for name, values in {"right": weights(0), "other": weights(0, depth=(1, 1, 1, 1)), "again": weights(1)}.items():
            state = {key: Tensor(value) for key, value in values.items()}
            save(folder / f"{name}.pth", {"state_dict_ema": state, "epoch": 299, "optimizer": {}})
    return {path.stem: path.read_bytes() for path in folder.glob("*.pth")} | {"page": b"<html>Sign in</html>" * 999}


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """A small network is published, and the user is in an empty folder; waiting takes no time."""
    monkeypatch.setitem(PUBLISHED, NAME, Published(NAME, ARCH, "digits", 99.2, (99.1, 100.0), classes=10))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)
    for name in ("CSWIN_WEIGHTS", "CSWIN_WEIGHTS_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "weights"


def here(folder):
    """All files below the folder, apart from the lock."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def get(capsys, *arguments):
    """Exit code, stdout, stderr of `cswin weights get`."""
    code = main(["weights", "get", NAME, *map(str, arguments)])
    return code, *capsys.readouterr()


def refused(capsys, *arguments):
    """What is said where it fails: at most two lines, with exit code 2."""
    code, _, err = get(capsys, *arguments)
    said = err[err.index("cswin weights: ") :]
    assert code == 2 and said.count("\n") <= 2, err
    return said


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_fetched_checked_converted(published, files, capsys):
    with serve(files["right"]) as server:
        code, out, err = get(capsys, "--mirror", server.url + "/a")
        assert code == 0 and server.requests == [(f"/a/{NAME}.pth", None)]
        assert here(published) == sorted(KEPT)
        checkpoint = load_checkpoint(published / KEPT[0])
        assert all(np.array_equal(checkpoint.weights[key], value) for key, value in weights(0).items())
        assert (
            f"{NAME}.pth: " in err and f"SHA-256 {sha256(files['right'])} (noted at this first use in weights/{KEPT[1]})" in err
        )
        assert "from state_dict_ema of cswin_test_32.pth" in out and "left out: optimizer" in out
        assert "top-1 99.10 %, top-5 100.00 % (PaddleClas)" in out and f"pretrained: weights:{NAME}" in out
        assert (published / KEPT[1]).read_text() == f"{sha256(files['right'])}  {NAME}.pth\n"
        code, _, err = get(capsys, "--mirror", server.url)
        assert code == 0 and err == f"weights/{KEPT[0]} is here already\n" and len(server.requests) == 1


def test_the_list(published, files, capsys, monkeypatch):
    with serve(files["right"]) as server:
        monkeypatch.setenv("CSWIN_WEIGHTS_MIRROR", server.url)
        monkeypatch.setenv("CSWIN_WEIGHTS", "shared/place")
        assert main(["weights"]) == 0
        rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
        assert rows["cswin_base_384"].split()[1:] == ["1K", "384", "309.5", "MB", "85.5", "85.50", "97.49", "no"]
        assert rows["cswin_large_22k_224"].endswith("no") and rows[NAME].endswith("no")
        assert get(capsys)[0] == 0
        assert main(["weights"]) == 0
        out = capsys.readouterr().out
        assert re.search(rf"^{NAME} .* yes$", out, re.MULTILINE) and "here: in shared/place." in out
    assert not published.exists()


def test_the_seven_published_files():
    assert [name for name in PUBLISHED if name != NAME] == [
        "cswin_tiny_224", "cswin_small_224", "cswin_base_224", "cswin_base_384", "cswin_large_224", "cswin_large_384",
        "cswin_large_22k_224",
    ]  # fmt: skip
    assert all(weights.architecture(7).image_size == int(name[-3:]) for name, weights in PUBLISHED.items() if name != NAME)
    assert RELEASE == "https://github.com/microsoft/CSWin-Transformer/releases/download/v0.1.0"


def test_the_document_gives_the_same_figures():
    text = (Path(__file__).parents[2] / "docs/weights.md").read_text()
    rows = dict(re.findall(r"^\| `(cswin_\w+)` \| .* \| (\d+ \| \S+ \| .*) \|$", text, re.MULTILINE))
    assert rows == {
        name: f"{w.architecture(1000).image_size} | {w.top1 or '-'} | {', '.join(f'{x:.2f}' for x in w.measured or ()) or '-'}"
        for name, w in PUBLISHED.items() if name != NAME
    }  # fmt: skip


def continued(half):
    """The Range after `half` of the bytes: whole chunks are kept."""
    return f"bytes={half // download.CHUNK * download.CHUNK}-"


def test_resumption_continues(published, files, capsys):
    half = len(files["right"]) // 2
    with serve(files["right"], "truncate", "ranges") as server:
        code, _, err = get(capsys, "--mirror", server.url)
        assert code == 0 and [asked for _, asked in server.requests] == [None, continued(half)]
    assert "try 2 of 5" in err and here(published) == sorted(KEPT)


def test_another_call_continues(published, files, capsys):
    half = len(files["right"]) // 2
    with serve(files["right"], "truncate", 503, "ranges") as server:
        server.behaviour[1:1] = [503] * download.RETRIES
        said = refused(capsys, "--mirror", server.url)
        assert f"{server.url}/{NAME}.pth: cannot be fetched: the server answers 503" in said
        assert "of it are kept, the same command continues\n" in said and "--from FILE" in said and "--mirror URL" in said
        assert here(published) == [f".transfer/{NAME}/{NAME}.pth.part"]
        server.behaviour[:] = ["ranges"]
        assert get(capsys, "--mirror", server.url)[0] == 0
        assert server.requests[-1][1] == continued(half)
    assert here(published) == sorted(KEPT)


@pytest.mark.parametrize("then", ["whole", "other_range"])
def test_a_server_without_proper_ranges_begins_anew(published, files, capsys, then):
    with serve(files["right"], "truncate", then) as server:
        assert get(capsys, "--mirror", server.url)[0] == 0
    assert here(published) == sorted(KEPT)
    assert len(server.requests) == (2 if then == "whole" else 3)


@pytest.mark.parametrize("left", ["whole", "longer"])
def test_a_process_that_was_ended_after_the_last_byte(published, files, capsys, left):
    folder = weights_layout().transfer(NAME)
    folder.mkdir(parents=True)
    (folder / f"{NAME}.pth.part").write_bytes(files["right"] + (b"x" if left == "longer" else b""))
    (folder / "tmpkilled").write_bytes(b"x")
    with serve(files["right"]) as server:
        assert get(capsys, "--mirror", server.url)[0] == 0
    assert here(published) == sorted(KEPT) and len(server.requests) == (1 if left == "whole" else 2)


def test_truncated_every_time(published, files, capsys):
    with serve(files["right"], "truncate") as server:
        said = refused(capsys, "--mirror", server.url)
    assert f"{NAME}.pth: cannot be fetched: the connection ended " in said and len(server.requests) == 5
    assert here(published) == [f".transfer/{NAME}/{NAME}.pth.part"]


def test_a_server_that_stalls(published, files, capsys, monkeypatch):
    monkeypatch.setattr(download, "SILENT_SECONDS", 0.2)
    with serve(files["right"], "stall") as server:
        assert "the server sent nothing for 0.2 s" in refused(capsys, "--mirror", server.url)
        assert KEPT[0] not in here(published)
        server.behaviour[:] = ["ranges"]
        assert get(capsys, "--mirror", server.url)[0] == 0


@pytest.mark.parametrize("behaviour", ["too_long", "too_short"])
def test_a_length_that_lies(published, files, capsys, behaviour):
    with serve(files["right"], behaviour) as server:
        said = refused(capsys, "--mirror", server.url)
        assert f"{server.url}/{NAME}.pth" in said and ("damaged" if behaviour == "too_short" else "cannot be fetched") in said
        assert not set(here(published)) & set(KEPT)
        server.behaviour[:] = ["ranges"]
        assert get(capsys, "--mirror", server.url)[0] == 0


@pytest.mark.parametrize(("content", "reason"), [
    ("page", "is damaged or not in one of PyTorch's formats"), ("other", f"is not a {ARCH}: depth: (1, 1, 1, 1), not (1, 1, 2, 1)"),
])  # fmt: skip
def test_a_wrong_file(published, files, capsys, content, reason):
    with serve(files[content]) as server:
        said = refused(capsys, "--mirror", server.url)
        assert f"{server.url}/{NAME}.pth" in said and reason in said and "--from FILE" in said
        assert here(published) == []
        server.content = files["right"]
        assert get(capsys, "--mirror", server.url)[0] == 0


def test_a_head_of_another_size(published, files, capsys, monkeypatch):
    monkeypatch.setitem(PUBLISHED, NAME, Published(NAME, ARCH, "digits", None, None, classes=1000))
    with serve(files["right"]) as server:
        assert f"is not {NAME}: num_classes: 10, not 1000" in refused(capsys, "--mirror", server.url)
    assert here(published) == []


@pytest.mark.parametrize("pinned", [True, False])
def test_another_sum_than_before(published, files, capsys, monkeypatch, pinned):
    right = sha256(files["right"])
    if pinned:
        entry = Published(NAME, ARCH, "digits", None, None, classes=10, sha256=right)
        monkeypatch.setitem(PUBLISHED, NAME, entry)
    with serve(files["right"]) as server:
        code, _, err = get(capsys, "--mirror", server.url)
        assert code == 0 and (f"SHA-256 {right} (as known)" in err) is pinned
        (published / KEPT[0]).unlink()
        server.content = files["again"]
        said = refused(capsys, "--mirror", server.url)
        assert f"{server.url}/{NAME}.pth has SHA-256 {sha256(files['again'])}, not {right}" in said
        assert ("(published)" if pinned else f"(noted at the first use in weights/{KEPT[1]})") in said
        assert KEPT[0] not in here(published)
        server.content = files["right"]
        code, _, err = get(capsys, "--mirror", server.url)
        assert code == 0 and "(as known)" in err


def test_the_file_that_is_here_is_checked(published, files, capsys):
    (published.parent / "copy.pth").write_bytes(files["right"])
    assert get(capsys, "--from", "copy.pth")[0] == 0
    (published / KEPT[1]).write_text(f"{'0' * 64}  {NAME}.pth\n")
    said = refused(capsys)
    assert f"weights/{KEPT[0]}: the file that it was made from has SHA-256" in said and f"remove weights/{KEPT[0]}" in said
    content = bytearray((published / KEPT[0]).read_bytes())
    content[-1] ^= 1
    (published / KEPT[0]).write_bytes(content)
    assert f"weights/{KEPT[0]}: is damaged" in refused(capsys)


def test_the_same_file_gives_the_same_bytes(published, files, capsys, monkeypatch):
    """Also under another name, with other versions: otherwise a stage that has begun with the weights would begin anew."""
    found = set()
    for name, version in (("a.pth", "1"), ("b.pt", "2")):
        (published.parent / name).write_bytes(files["right"])
        monkeypatch.setattr(convert, "versions", lambda version=version: {"cswin": version})
        monkeypatch.setattr(convert, "git_commit", lambda version=version: {"commit": version})
        assert get(capsys, "--from", name)[0] == 0
        found.add(sha256((published / KEPT[0]).read_bytes()))
        shutil.rmtree(published)
    assert len(found) == 1


def test_from_a_file(published, files, capsys):
    copy = published.parent / "copy of it.pth"
    copy.write_bytes(files["right"])
    receipt = published.parent / "receipt.json"
    code, _, err = get(capsys, "--from", copy, "--receipt", receipt)
    assert code == 0 and str(copy) in err and copy.exists() and here(published) == sorted(KEPT)
    assert json.loads(receipt.read_text()) == {"weights": NAME, "sha256": sha256(files["right"])}
    (published / KEPT[0]).unlink()
    copy.write_bytes(files["again"])
    assert f"{copy} has SHA-256" in refused(capsys, "--from", copy)
    assert copy.exists()
    assert "none.pth: is not a file" in refused(capsys, "--from", "none.pth")


@pytest.mark.parametrize(("status", "reason"), [(404, "404 Not Found"), (403, "403 Forbidden")])
def test_a_server_that_refuses(published, capsys, status, reason):
    with serve(b"", status) as server:
        said = refused(capsys, "--mirror", server.url)
    assert f"{server.url}/{NAME}.pth: cannot be fetched: the server answers {reason}\n" in said and "--from FILE" in said
    assert len(server.requests) == 1 and here(published) == []


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_no_network(published, capsys, monkeypatch):
    assert "Connection refused" in refused(capsys, "--mirror", f"http://127.0.0.1:{free_port()}")
    assert "resolve" in refused(capsys, "--mirror", "http://nowhere.invalid")
    assert "--mirror: ftp://there" in refused(capsys, "--mirror", "ftp://there")
    with serve(b"", 407) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert "407 Proxy Authentication Required" in refused(capsys, "--mirror", "http://nowhere.invalid")
        assert proxy.requests[0][0] == f"http://nowhere.invalid/{NAME}.pth"
        monkeypatch.setenv("https_proxy", proxy.url)
        said = refused(capsys, "--mirror", "https://nowhere.invalid")
        assert "the proxy: " in said and "https://nowhere.invalid" in said
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
        assert "the proxy: " in refused(capsys)
    assert here(published) == []


def test_a_full_disk(published, files, capsys, monkeypatch):
    folder = weights_layout().transfer(NAME)
    folder.mkdir(parents=True)
    (folder / f"{NAME}.pth.part").symlink_to("/dev/full")
    with serve(files["right"], "whole") as server:
        assert "No space left on device); make room" in refused(capsys, "--mirror", server.url)
        (folder / f"{NAME}.pth.part").unlink()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        said = refused(capsys, "--mirror", server.url)
        assert f"{NAME}.pth with its conversion needs" in said and "free are 1.0 kB" in said
    assert not set(here(published)) & set(KEPT)


def test_a_disk_that_is_full_at_the_conversion(published, files, capsys, monkeypatch):
    """What was fetched is kept."""
    with serve(files["right"]) as server:
        with monkeypatch.context() as patch:
            patch.setattr(safetensors.numpy, "save_file", full)
            said = refused(capsys, "--mirror", server.url)
        assert f"{KEPT[0]}: cannot be written (No space left on device)" in said
        assert KEPT[0] not in here(published)
        assert get(capsys, "--mirror", server.url)[0] == 0
    assert len(server.requests) == 1 and here(published) == sorted(KEPT)


def full(*arguments, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_written(published, files, capsys, tmp_path):
    (tmp_path / "file").touch()
    with serve(files["right"]) as server:
        assert "file" in refused(capsys, "--mirror", server.url, "--folder", "file/weights")


def fetch(url, queue):
    queue.put(main(["weights", "get", NAME, "--mirror", url]))


def test_two_processes_at_once(published, files):
    """One fetches, the other one waits for it."""
    context = multiprocessing.get_context("fork")
    with serve(files["right"], "stall", "ranges") as server:
        queue = context.Queue()
        processes = [context.Process(target=fetch, args=(server.url, queue)) for _ in range(3)]
        for process in processes:
            process.start()
        server.released.wait(1)
        server.released.set()  # the first answer ends in the middle, and is continued
        assert [queue.get(timeout=60) for _ in processes] == [0, 0, 0]
        for process in processes:
            process.join()
        assert len(server.requests) == 2
    assert here(published) == sorted(KEPT)


def test_a_killed_process_leaves_nothing_under_the_final_name(published, files):
    with serve(files["right"], "stall") as server:
        command = [sys.executable, "-m", "cswin", "weights", "get", "cswin_tiny_224", "--mirror", server.url]
        process = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
        while not server.requests:
            assert process.poll() is None
        part = weights_layout().transfer("cswin_tiny_224") / "cswin_tiny_224.pth.part"
        while not part.exists() or not part.stat().st_size:
            assert process.poll() is None
        process.kill()
        process.wait()
    assert part.exists() and not list(published.glob("cswin*"))
