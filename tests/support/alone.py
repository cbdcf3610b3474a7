"""A function in a process of its own."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def alone(function, *arguments):
    """What the function returns or raises; its memory is free afterwards (MindSpore keeps compiled graphs with their weights)."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()
