"""A loopback stand-in for the W&B server: it keeps what it is sent, or behaves badly on purpose."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Received:
    """What one server was sent: by run id, then by line number."""

    history: dict[str, dict[int, dict]] = field(default_factory=dict)
    runs: dict[str, dict] = field(default_factory=dict)
    exit_codes: dict[str, int] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    delay_s: float = 0.0
    failing: bool = False

    def steps(self, run: str) -> list[int]:
        """Return the W&B steps of the history lines in the order of their numbers."""
        return [line["_step"] for _, line in sorted(self.history.get(run, {}).items())]

    def answer(self, operation: str, variables: dict, url: str) -> dict:
        """Answer the GraphQL operations of a run; an empty object is enough for the rest."""
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "someone"}}
        if operation == "Viewer":
            return {
                "viewer": {"id": "u", "entity": "someone", "username": "someone", "flags": "{}"}
            }
        if operation == "RunResumeStatus":
            return {"model": project | {"bucket": self.bucket(variables["name"])}}
        if operation == "UpsertBucket":
            known = self.runs.setdefault(variables["name"], {})
            known |= {k: v for k, v in variables.items() if v is not None}
            bucket = {"id": "b", "name": variables["name"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"{url}/upload/{n}"} for n in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":  # as if it had been stored before
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}
            return {"createArtifact": {"artifact": artifact}}
        return {"project": None} if operation == "ArtifactType" else {}

    def bucket(self, run: str) -> dict | None:
        """Return what the server remembers of a run, which is how a client learns its next step."""
        lines = [json.dumps(line) for _, line in sorted(self.history.get(run, {}).items())]
        if run not in self.runs:
            return None
        return {
            "id": "b",
            "name": run,
            "historyLineCount": len(lines),
            "historyTail": json.dumps(lines[-1:]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "summaryMetrics": "{}",
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }


@contextmanager
def serving(received: Received) -> Iterator[str]:
    """Run the server in a thread; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            received.bodies.append(body)
            time.sleep(received.delay_s)
            if received.failing:
                return self.reply({"error": "out of order"}, 500)
            if self.path.endswith("/graphql"):
                asked = json.loads(body)
                operation = asked["query"].split("(")[0].split("{")[0].split()[-1]
                url = f"http://127.0.0.1:{self.server.server_address[1]}"
                return self.reply(
                    {"data": received.answer(operation, asked.get("variables") or {}, url)}
                )
            if self.path.endswith("/file_stream"):
                keep(received, self.path.split("/")[-2], json.loads(body))
            return self.reply({})

        do_PUT = do_POST  # noqa: N815

        def do_GET(self):
            self.reply({})

        def reply(self, content, status=200):
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that is killed resets its connections
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def keep(received: Received, run: str, sent: dict) -> None:
    """Store history lines by their number; the number that a client gives is the client's."""
    chunk = (sent.get("files") or {}).get("wandb-history.jsonl")
    if chunk:
        lines = received.history.setdefault(run, {})
        for number, text in enumerate(chunk["content"], chunk["offset"]):
            lines[number] = json.loads(text)
    if sent.get("complete"):
        received.exit_codes[run] = sent.get("exitcode", 0)


@contextmanager
def silent() -> Iterator[str]:
    """Accept connections and never answer; yields the address."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def refused() -> Iterator[str]:
    """Yield an address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}"
