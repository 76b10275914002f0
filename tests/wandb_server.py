"""As much of a W&B server as an offline run needs to be sent to: it keeps the history."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Knows each run's history lines, and what a client may ask before it sends more."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.history: dict[str, list[str]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL request; {} for all that a run can do without."""
        name = variables.get("name")
        model = {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}}
        if "RunResumeStatus" in query:
            lines = self.history.get(str(name))
            return {"model": {**model, "bucket": lines and self.bucket(name, lines)}}
        if "UpsertBucket" in query:
            bucket = {"id": "r", "name": name, "displayName": name, "config": "{}"}
            return {"upsertBucket": {"bucket": {**bucket, "project": model}, "inserted": True}}
        if "CreateRunFiles" in query:  # without an answer the client's core dies
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
        if "Viewer" in query:
            return {"viewer": {"id": "u", "entity": "entity", "flags": "{}"}}
        return {}

    def bucket(self, name: object, lines: list[str]) -> dict[str, Any]:
        """A run that is there, as one that resumes it is told."""
        counts = {"historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps(lines[-1:]), "eventsTail": "[]"}
        config = {"config": "{}", "wandbConfig": '{"t": 1}', "tags": []}
        return {"id": "r", "name": name, "summaryMetrics": lines[-1], **counts, **tails, **config}

    def keep(self, run: str, offset: int, lines: list[str]) -> None:
        """Lines of a run's history, from line number ``offset`` on, as the client believes."""
        kept = self.history.setdefault(run, [])
        kept[offset : offset + len(lines)] = lines


class Handler(BaseHTTPRequestHandler):
    """Answers GraphQL, takes file streams, and nods at the rest."""

    server: Server

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        content = json.loads(body or b"{}")
        if self.path.endswith("file_stream"):
            chunk = content.get("files", {}).get("wandb-history.jsonl")
            if chunk:
                self.server.keep(self.path.split("/")[-2], chunk["offset"], chunk["content"])
            self.reply({})
        else:
            data = self.server.answer(content.get("query", ""), content.get("variables") or {})
            self.reply({"data": data})

    def do_GET(self):
        self.reply({})

    def reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests print what they need."""


@contextlib.contextmanager
def wandb_server() -> Iterator[Server]:
    """A server that listens until the block ends."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
