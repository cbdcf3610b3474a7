"""Progress: lines with speed and time left outside of a terminal, a bar in one, everything in the log file."""

import io

import pytest

from cswin.errors import UserError
from cswin.progress import Console, duration_text, size_text


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (425, "7m05s"), (3600, "1h00m"), (11_520, "3h12m"), (702_000, "8d03h")],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_400_000, "3.4 MB"), (150.1e9, "150.1 GB"), (2.5e12, "2.50 TB")],
)
def test_sizes(size, text):
    assert size_text(size) == text


def test_a_line_every_ten_seconds(tmp_path):
    stream, clock = io.StringIO(), Clock()
    with Console(tmp_path / "new" / "log", stream, clock) as console:
        progress = console.progress("extract a.tar", 1_000_000_000)
        for _ in range(30):
            clock.now += 1
            progress.update(20_000_000, files="12")
        progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "extract a.tar: 200.0 MB of 1.0 GB, 20 %, 20 MB/s, 40s left  files 12"
    assert len(lines) == 4 and lines[-1] == "extract a.tar: 600.0 MB of 1.0 GB in 30s (20 MB/s)"
    assert (tmp_path / "new" / "log").read_text().splitlines() == lines


def test_what_was_there_before_does_not_count_for_the_speed():
    stream, clock = io.StringIO(), Clock()
    progress = Console(None, stream, clock).progress("manifest", 2000, "images", done=1000)
    clock.now += 10
    progress.update(100)
    assert stream.getvalue() == "manifest: 1,100 of 2,000 images, 55 %, 10 images/s, 1m30s left\n"


def test_a_bar_in_a_terminal_and_lines_in_the_log(tmp_path):
    stream, clock = Terminal(), Clock()
    with Console(tmp_path / "log", stream, clock) as console, console.progress("convert", 100, "images") as progress:
        clock.now += 20
        progress.update(50)
        console.say("a message")
    assert "convert:" in stream.getvalue() and "\r" in stream.getvalue() and "a message" in stream.getvalue()
    assert (tmp_path / "log").read_text().splitlines() == [
        "convert: 50 of 100 images, 50 %, 2.50 images/s, 20s left",
        "a message",
        "convert: 50 of 100 images in 20s (2.50 images/s)",
    ]


def test_details_stand_behind_the_figures():
    stream, clock = io.StringIO(), Clock()
    progress = Console(None, stream, clock).progress("train", 100, "steps", 40)
    clock.now += 10
    progress.update(20, epoch="3", loss="2.3457")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "train: 60 of 100 steps, 60 %, 2.00 steps/s, 20s left  epoch 3  loss 2.3457",
        "train: 60 of 100 steps in 10s (2.00 steps/s)",
    ]


def test_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --log"):
        Console(tmp_path / "file" / "log")
