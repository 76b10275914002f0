"""A stand-in for W&B's server: takes a run and its history, and can be switched off.

It also leads a sweep of one run, which every agent is told to train, as W&B does with a preempted
one.
"""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[1]
SHIPPED = HOUSE / "experiments" / "sweep_lambda.yaml"


class WandbServer(ThreadingHTTPServer):
    """Answers W&B's client; of a ``sweep`` file's text it knows one ``run``: id and parameters."""

    daemon_threads = True

    def __init__(self, sweep: str = "", run: dict[str, Any] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.received: list[tuple[str, str]] = []
        self.sweep = sweep
        self.run = {"type": "run", "program": "train.py", **(run or {})}
        self.waiting = 0  # agents that have not been told yet what to train
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, what: str) -> list[dict[str, Any]]:
        """The variables of each GraphQL request that is called ``what``."""
        bodies = [json.loads(body) for path, body in self.received if path == "/graphql"]
        return [body.get("variables") or {} for body in bodies if what in body["query"]]

    def history(self, run: str) -> list[str]:
        """The lines of a run's history, each where the client said that it belongs."""
        lines: list[str] = []
        for path, body in self.received:
            files = (
                json.loads(body).get("files", {}) if path.endswith(f"/{run}/file_stream") else {}
            )
            if chunk := files.get("wandb-history.jsonl"):
                content, offset = chunk["content"], chunk["offset"]
                lines[offset : offset + len(content)] = content
        return lines

    def switch_off(self) -> None:
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append((self.path, body.decode(errors="replace")))
        content = {"data": self.answer(json.loads(body))} if self.path == "/graphql" else {}
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET = do_POST

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        project = {"name": "project", "entity": {"name": "entity"}}
        given = asked.get("variables") or {}
        if "upsertBucket" in asked["query"]:
            bucket = {"id": "run", "name": given.get("name"), "displayName": "run"}
            bucket |= {"sweepName": given.get("sweep"), "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in asked["query"]:
            files = [
                {"name": name, "uploadUrl": f"{self.server.url}/file"} for name in given["files"]
            ]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        if "RunResumeStatus" in asked["query"]:
            lines = self.server.history(given["name"])
            bucket = resumed(given["name"], lines) if lines else None
            return {"model": {"id": "model", **project, "bucket": bucket}}
        if "query Viewer" in asked["query"]:
            me = {"id": "me", "entity": "entity", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": {**me, "teams": {"edges": []}}}
        if "SweepWithRuns" in asked["query"]:
            sweep = {"id": "sweep", "config": self.server.sweep, "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        if "CreateAgent" in asked["query"]:
            self.server.waiting += 1
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "agentHeartbeat" in asked["query"]:
            commands = json.dumps([self.server.run] * self.server.waiting)
            self.server.waiting = 0
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": commands}}
        return {}

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


def resumed(name: str, lines: list[str]) -> dict[str, Any]:
    """A run that is there, as a client is told that goes on with it."""
    counts = {"historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0}
    tails = {"historyTail": json.dumps(lines[-1:]), "eventsTail": "[]", "summaryMetrics": lines[-1]}
    config = {"config": "{}", "wandbConfig": '{"t": 1}', "tags": []}
    return {"id": "run", "name": name, "displayName": "run", **counts, **tails, **config}
