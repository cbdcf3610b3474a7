"""A server of published weights on the loopback address, that behaves as servers and networks do."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WeightsServer(ThreadingHTTPServer):
    """Serves one content under every path.

    Attributes:
        content: the file.
        behaviour: how each request is answered, in order; the last one for all that follow. `ranges`, `whole` (ranges are ignored),
            `truncate` (the connection ends in the middle), `stall` (nothing comes after the middle), `too_long` and `too_short` (a
            wrong Content-Length), `other_range`, or a status code.
        requests: path and Range of each request.
    """

    daemon_threads = True

    def __init__(self, content: bytes, *behaviour: str | int):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.behaviour, self.requests = content, list(behaviour or ("ranges",)), []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: WeightsServer

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked))
        behaviour = server.behaviour.pop(0) if len(server.behaviour) > 1 else server.behaviour[0]
        content, whole, half = server.content, len(server.content), len(server.content) // 2
        if isinstance(behaviour, int):
            return self._head(behaviour, 0)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and behaviour in ("ranges", "other_range") else 0
        if start and start >= whole:
            return self._head(416, 0, f"bytes */{whole}")
        length = whole - start + {"too_long": 1000, "too_short": -half}.get(behaviour, 0)
        start += behaviour == "other_range" and start > 0
        self._head(206 if start else 200, length, f"bytes {start}-{whole - 1}/{whole}" if start else None)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[start : half if behaviour in ("truncate", "stall") else None])
        if behaviour == "stall":
            server.released.wait(60)
        return None

    def _head(self, status: int, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serve(content: bytes, *behaviour: str | int) -> Iterator[WeightsServer]:
    """A server that runs."""
    with WeightsServer(content, *behaviour) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()
