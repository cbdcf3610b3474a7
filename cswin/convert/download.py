"""Fetches published weights, checks and converts them, each file once for all runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
import urllib3
from requests import codes

from cswin.atomic import atomic_path
from cswin.checkpoint import Checkpoint, file_sha256, load_checkpoint, save_checkpoint
from cswin.convert.architecture import Choice
from cswin.convert.convert import Options, converted
from cswin.convert.published import MIRROR_VARIABLE, RELEASE, Published
from cswin.data.disk import check_space, exclusive, write_error
from cswin.errors import UserError
from cswin.layout import WeightsLayout
from cswin.progress import Console, size_text

CONNECT_SECONDS, SILENT_SECONDS = 10, 30  # without a connection; without a byte
RETRIES = 4
CHUNK = 1 << 16  # as much is fetched again after an interruption
FINAL = set(range(400, 500)) - {codes.request_timeout, codes.range_not_satisfiable, codes.too_many_requests}
REMEDY = f"without a network: --from FILE, a copy of the file; another address: --mirror URL or {MIRROR_VARIABLE}"


class WrongFile(UserError):
    """A file is not the published one; the message says why."""


@dataclass(frozen=True)
class Obtained:
    """Converted weights that are at their place.

    Attributes:
        path: of the checkpoint.
        checkpoint: its content.
        sha256: of the published file.
        news: what was done, in words; None: they were here.
    """

    path: Path
    checkpoint: Checkpoint
    sha256: str
    news: str | None


def get_weights(
    published: Published, layout: WeightsLayout, console: Console, given: Path | None = None, mirror: str | None = None
) -> Obtained:
    """Bring published weights to their place, unless they are there. A second process waits for the first one.

    Args:
        published: which ones.
        layout: where to.
        console: receives progress and messages.
        given: a copy of the published file, instead of fetching it.
        mirror: address of a folder that has the file, instead of the authors'.

    Raises:
        UserError: if they cannot be fetched or are not what they should be; then there is no file at their place, or the old one.
    """
    if layout.checkpoint(published.name).exists():
        return _present(published, layout)
    folder = layout.transfer(published.name)
    with exclusive(folder, lambda: console.say(f"{published.file}: another process is fetching it; waiting for it")):
        if layout.checkpoint(published.name).exists():
            return _present(published, layout)
        if given is not None:
            return _put(published, layout, given, str(given))
        address = f"{(mirror or RELEASE).rstrip('/')}/{published.file}"
        original = _fetch(published.file, address, folder, console)
        try:
            obtained = _put(published, layout, original, address)
        except WrongFile:
            original.unlink()
            raise
        original.unlink()
        return obtained


def _present(published: Published, layout: WeightsLayout) -> Obtained:
    """The weights that are here, checked."""
    path = layout.checkpoint(published.name)
    checkpoint = load_checkpoint(path)
    sha256 = checkpoint.record.provenance.get("conversions", [{}])[0].get("sha256", "unknown")
    try:
        _require(published, checkpoint, str(path))
        _compare(published, layout, sha256, f"{path}: the file that it was made from")
    except UserError as error:
        raise UserError(f"{error}\nto make it anew: remove {path}, and give the same command again") from error
    return Obtained(path, checkpoint, sha256, None)


def _put(published: Published, layout: WeightsLayout, original: Path, origin: str) -> Obtained:
    """Check the published file, convert it, note its checksum, and put the result to its place."""
    path = layout.checkpoint(published.name)
    if not original.is_file():
        raise UserError(f"{original}: is not a file; give a copy of {published.file}")
    sha256, known = file_sha256(original), _known(published, layout)
    try:
        _compare(published, layout, sha256, origin)
        checkpoint = converted(original, Options(choice=Choice(arch=published.arch)))
        _require(published, checkpoint, origin)
    except UserError as error:
        if isinstance(error.__cause__, OSError):  # it cannot be read
            raise
        reason = str(error).replace(str(original), origin)
        raise WrongFile(f"{reason}\nit is not used; take {published.file} from another place; {REMEDY}") from error
    # The same file gives the same bytes, wherever and with whatever it is converted: a stage that has begun with them goes on.
    [conversion] = checkpoint.record.provenance["conversions"]
    conversion["file"] = published.file
    del conversion["git"], conversion["versions"]
    if known is None:
        with atomic_path(layout.checksum(published.name)) as temporary:
            temporary.write_text(f"{sha256}  {published.file}\n", encoding="utf-8")
    save_checkpoint(path, checkpoint)
    how = f"noted at this first use in {layout.checksum(published.name)}" if known is None else "as known"
    return Obtained(path, checkpoint, sha256, f"{origin}, SHA-256 {sha256} ({how})")


def _known(published: Published, layout: WeightsLayout) -> str | None:
    """The SHA-256 that the published file must have: the published one, else the one noted at the first use."""
    note = layout.checksum(published.name)
    return published.sha256 or (note.read_text(encoding="utf-8").partition(" ")[0] if note.exists() else None)


def _compare(published: Published, layout: WeightsLayout, sha256: str, what: str) -> None:
    known = _known(published, layout)
    if known not in (None, sha256):
        whence = "published" if published.sha256 else f"noted at the first use in {layout.checksum(published.name)}"
        raise UserError(f"{what} has SHA-256 {sha256}, not {known} ({whence})")


def _require(published: Published, checkpoint: Checkpoint, what: str) -> None:
    found = checkpoint.record.architecture
    if different := found.differences(published.architecture(found.num_classes)):
        raise UserError(f"{what} is not {published.name}: {'; '.join(different)}")


def _fetch(file: str, address: str, folder: Path, console: Console) -> Path:
    """The file at that address, whole; what arrives is kept for the next try and the next call.

    Raises:
        UserError: naming the file, the address and the remedy.
    """
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--mirror: {address} does not begin with http:// or https://; a file of this machine: --from FILE")
    pooch.get_logger().setLevel("WARNING")  # it would repeat what is said here
    transfer = Transfer(folder / f"{file}.part", console)
    store = pooch.create(folder, address.removesuffix(file), registry={file: None}, retry_if_failed=RETRIES)
    for killed in folder.glob("tmp*"):
        killed.unlink()
    try:
        return Path(store.fetch(file, downloader=transfer))
    except requests.RequestException as error:
        kept = f"; {size_text(size)} of it are kept, the same command continues" if (size := transfer.size) else ""
        raise UserError(f"{address}: cannot be fetched: {_reason(error)}{kept}\n{REMEDY}") from error
    except OSError as error:
        raise write_error(transfer.path, error) from error


class Transfer:
    """Receives a file over HTTP, as pooch's downloader; continues what an earlier try has left where the server supports ranges.

    Args:
        path: what has arrived.
        console: receives progress and messages.
    """

    def __init__(self, path: Path, console: Console):
        self.path, self.console, self.tries = path, console, 0

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    def __call__(self, url: str, output_file: str, store: pooch.Pooch) -> None:
        """Receive the file; pooch calls again after a `RequestException`."""
        self.tries += 1
        try:
            self._try(url)
        except requests.RequestException as error:
            if self.tries <= RETRIES:
                self.console.say(f"{url}: {_reason(error)}; try {self.tries + 1} of {RETRIES + 1}")
            raise
        self.path.replace(output_file)

    def _try(self, url: str) -> None:
        have, timeout = self.size, (CONNECT_SECONDS, SILENT_SECONDS)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
            start, whole = _content_range(answer)
            if answer.status_code in FINAL:
                raise UserError(f"{url}: cannot be fetched: the server answers {answer.status_code} {answer.reason}\n{REMEDY}")
            if answer.status_code == codes.range_not_satisfiable and whole == have:
                return  # a process was ended after the last byte
            if (wrong := start not in (0, have)) or answer.status_code == codes.range_not_satisfiable:
                self.path.unlink(missing_ok=True)
            answer.raise_for_status()
            if wrong:
                raise requests.ConnectionError(f"the server sends bytes from {start:,} on, not from {have:,}")
            self._receive(answer, start, whole)
            if whole not in (None, self.size):
                raise requests.ConnectionError(f"{self.size:,} of {whole:,} bytes came")

    def _receive(self, answer: requests.Response, have: int, whole: int | None) -> None:
        """Append the body to the first `have` bytes: none or all that have arrived."""
        whole = whole or have + (answer.raw.length_remaining or 0)
        check_space(self.path, 2 * whole - have, f"{self.path.stem} with its conversion")
        with (
            self.path.open("ab" if have else "wb") as file,
            self.console.progress(self.path.stem, whole, done=have) as progress,
        ):
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))


def _content_range(answer: requests.Response) -> tuple[int, int | None]:
    """The first byte's position, and the file's length where the server tells it: `Content-Range: bytes 100-199/200`."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", answer.headers.get("Content-Range", ""))
    start, whole = found.groups() if found else (None, None)
    return int(start or 0), int(whole) if whole else None


def _reason(error: requests.RequestException) -> str:
    """What went wrong, for a person."""
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", None) or cause  # of urllib3, after its tries
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS} s"
    if isinstance(cause, urllib3.exceptions.ReadTimeoutError):
        return f"the server sent nothing for {SILENT_SECONDS} s"
    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code} {error.response.reason}"
    while isinstance(cause, Exception) and cause.args and isinstance(cause.args[-1], Exception):
        cause = cause.args[-1]
    if isinstance(cause, urllib3.exceptions.IncompleteRead):
        return f"the connection ended {size_text(cause.expected)} before the end"
    text = str(cause).rpartition(": ")[2]
    return f"the proxy: {text}" if isinstance(error, requests.exceptions.ProxyError) else text
