"""When to stop early: durations, the time kept back for saving, signals."""

import signal

import pytest

from cswin.distributed.stopping import STOP_SIGNALS, Stopping, parse_duration
from cswin.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45m", 2700), ("11h", 39600), ("2d", 172800), ("01:30:00", 5400), ("1-00:00:10", 86410)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


def test_bad_duration_is_refused():
    for text in ("soon", "01:30", "1:2:3:4", "-5"):
        with pytest.raises(UserError, match=text):
            parse_duration(text)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr("cswin.distributed.stopping.time.monotonic", lambda: now[0])
    return now


def test_time_limit_leaves_time_for_a_step_and_three_slow_saves(clock):
    stopping = Stopping(600.0)
    stopping.took(20.0)
    while (reason := stopping()) is None:
        clock[0] += 7.0
    assert reason == "the time limit of 600 s is near"
    left = 1600.0 - clock[0]
    assert 60.0 <= left <= 60.0 + 2 * 7.0


def test_no_limit_no_signal_no_stop(clock):
    stopping = Stopping(None)
    clock[0] += 1e9
    assert stopping() is None and stopping.asked is None


@pytest.fixture
def stopping():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stopping = Stopping(None)
    stopping.listen()
    yield stopping
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals(stopping, number):
    signal.raise_signal(number)
    assert stopping() == stopping.asked == f"asked to stop by {number.name}"


def test_second_interrupt_does_not_wait(stopping):
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_terminal_interrupt_after_a_cluster_signal_is_the_first_one(stopping):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert "SIGINT" in stopping.asked
