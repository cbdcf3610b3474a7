"""Run by msrun in tests/preflight/test_preflight.py: the check of the exchanges. Arguments: a folder for the results, the fault."""

import json
import sys
from pathlib import Path

import mindspore as ms
from mindspore import ops
from mindspore.communication import get_group_size, get_rank, init

from cswin.distributed.ranks import Ranks
from cswin.preflight.checks import exchanges

ms.set_device("CPU")
init()
folder, fault = Path(sys.argv[1]), sys.argv[2]
words_of_all = Ranks._words_of_all


def lossy(self, words):
    """The last bit of each word is lost on the way to the last rank."""
    received = words_of_all(self, words)
    return received & ~1 if self.rank == self.size - 1 else received


def rounded(value):
    """A sum in float16, as of a library that compresses."""
    return ops.AllReduce()(value.astype(ms.float16)).astype(ms.float32)


if fault == "bit":
    Ranks._words_of_all = lossy
ranks = Ranks(get_rank(), get_group_size())
checks = exchanges(ranks, rounded if fault == "sum" else ops.AllReduce())
(folder / f"{ranks.rank}.json").write_text(json.dumps({check.what.rpartition(" ")[2]: check.verdict for check in checks}))
