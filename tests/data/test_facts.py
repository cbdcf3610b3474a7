"""Files that name their format: what is missing, damaged or of another format is refused with the command that makes it anew."""

import json

import pytest

from cswin.data.store.dataset import Dataset
from cswin.data.store.manifest import load_summary
from cswin.data.store.mindrecord import load_receipt
from cswin.errors import UserError

READERS = {"dataset": (Dataset.load, "snakemake"), "manifest": (load_summary, "cswin data manifest"),
           "receipt": (load_receipt, "cswin data convert")}  # fmt: skip


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", json.dumps({"format": "other-1"}), b"\xff"])
@pytest.mark.parametrize("reader", list(READERS))
def test_refused_with_path_and_remedy(tmp_path, reader, content):
    read, remedy = READERS[reader]
    path = tmp_path / "facts.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"{path}: .*{remedy}"):
        read(path)
