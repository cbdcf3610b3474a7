"""Rows processed by threads or processes: results in the order of the rows, with a bounded number in progress."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from cswin.distributed.sockets import use_short_socket_folder
from cswin.errors import UserError

CHUNK = 8  # rows per task: passing a task costs about 0.2 ms, a row takes 2 to 6 ms
TERM_GRACE = 10.0  # seconds for which a worker process continues after SIGTERM


@contextlib.contextmanager
def worker_pool(kind: str, count: int) -> Iterator[Executor]:
    """`count` workers, `thread` or `process`; at the end, work that has not begun is dropped."""
    executor: Executor
    if kind == "thread":
        executor = ThreadPoolExecutor(count, thread_name_prefix="loader")
    else:  # not fork: MindSpore's threads do not survive it
        use_short_socket_folder()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["cswin.data.loader.preload"])
        executor = ProcessPoolExecutor(count, context, _prepare_process)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def in_order(pool: Executor, task: Callable[[Any], Any], rows: Iterable, ahead: int) -> Iterator:
    """task(row) for each row, in order, with about `ahead` rows in progress.

    Raises:
        UserError: if a worker process dies. Errors of `task` are raised at the position of their row.
    """
    rows, pending = iter(rows), deque()
    while chunk := list(islice(rows, CHUNK)):
        pending.append(pool.submit(_each, task, chunk))
        if len(pending) * CHUNK >= ahead:
            yield from _results(pending.popleft())
    while pending:
        yield from _results(pending.popleft())


def prefetched(items: Iterator, depth: int) -> Iterator:
    """The same items, prepared by a thread up to `depth` ahead. Its errors are raised here; it ends when the reader stops."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce():
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()


def _each(task: Callable[[Any], Any], rows: list) -> list:
    done = []
    for row in rows:
        try:
            done.append(task(row))
        except Exception as error:  # the rows before it are still needed
            done.append(_Raised(error))
            break
    return done


class _Raised:
    """An exception instead of a result."""

    def __init__(self, error: Exception):
        self.error = error


def _results(future: Future) -> Iterator:
    try:
        results = future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process that decodes images was killed, by the system for want of memory most likely: lower runtime.workers or "
            "use worker_kind: thread, and give the same command again"
        ) from None
    for result in results:
        if isinstance(result, _Raised):
            raise result.error
        yield result


def _prepare_process() -> None:
    """Ignores signals, which a terminal or a cluster sends to all processes of a job: the trainer handles them, and it still needs
    batches while it stops. Ends when the trainer has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _exit_later())
    warnings.filterwarnings("ignore", module="PIL")  # broken EXIF, which is not used
    threading.Thread(target=_exit_with_parent, name="parent", daemon=True).start()


def _exit_later() -> None:
    timer = threading.Timer(TERM_GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
