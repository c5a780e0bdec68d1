"""A file server on this machine that counts what it is asked and can misbehave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What the server gives away, and the requests it has seen."""

    url: str = ""
    data: bytes = b""
    failures: list[int] = field(default_factory=list)  # statuses to answer with first
    requests: list[str] = field(default_factory=list)


@contextmanager
def file_server(data: bytes) -> Iterator[Served]:
    """Serve the bytes at `url`, whatever the path."""
    served = Served(data=data)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            status = served.failures.pop(0) if served.failures else 200
            self.send_response(status)
            self.send_header("Content-Length", str(len(served.data)))
            self.end_headers()
            self.wfile.write(served.data if status == 200 else bytes(len(served.data)))

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/file.zip"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
