"""A stand-in for W&B's service: enough of its API for wandb 0.31 to send a run, and to go on with it."""

import gzip
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pytest import approx

from tests.tiny_runs import read_csv

KEY = "5ec4e7" * 6 + "5ec4"
SERVER = {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None, "features": []}
USER = {
    "id": "u",
    "entity": "me",
    "username": "me",
    "email": "me@x",
    "admin": False,
    "flags": "{}",
    "teamNames": ["me"],
}


@dataclass
class StoredRun:
    """What the service has of a run."""

    sent: dict[str, Any] = field(default_factory=dict)  # the last value of each variable: project, tags, config, ...
    files: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # lines by name
    uploads: set[str] = field(default_factory=set)  # files that were PUT
    exit_codes: list[int] = field(default_factory=list)
    preempting: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files["wandb-history.jsonl"]]

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads(self.files["wandb-summary.json"][-1])
        return summary

    @property
    def config(self) -> dict[str, Any]:
        return {name: entry["value"] for name, entry in json.loads(self.sent["config"]).items() if name != "_wandb"}


class Service:
    """The service; `start` and `stop` are the network that comes and goes."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.refuses = False  # whether keys are wrong
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which W&B finds it."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self._port}", "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"service": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def check(self, run: Path, repeated: bool = False) -> StoredRun:
        """Compare what it has of a run with the run folder, cell by cell, and return it.

        Where batches were repeated after a kill, W&B keeps the rows that it had: of the same values, at another speed.
        """
        stored = self.runs[json.loads((run / "run.json").read_text())["wandb_id"]]
        expected = [{name: float(cell) for name, cell in row.items() if cell} for row in read_csv(run / "metrics.csv")]
        assert len(stored.rows) == len(expected) > 0, f"{len(stored.rows)} rows of {len(expected)}"
        for number, (row, wanted) in enumerate(zip(stored.rows, expected, strict=True)):
            assert row.pop("_step") == number
            assert row.pop("_timestamp") == approx(wanted.pop("time"), abs=1000 if repeated else 1e-5)
            assert row.pop("trainer/global_step") == wanted.pop("step")
            found = {name: cell for name, cell in row.items() if name[0] != "_" and not isinstance(cell, dict)}
            for name in [name for name in wanted if repeated and name.startswith("perf/")]:
                assert found.pop(name) > 0 and wanted.pop(name) > 0
            assert found == wanted
        return stored


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Nothing: clients are killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        text = self._text()
        if self.service.refuses:
            self._answer({"errors": [{"message": "invalid key"}]}, 401)
        elif self.service._server is None:  # a connection from before the network went
            self.close_connection = True
        elif self.path.startswith("/graphql"):
            body = json.loads(text)
            self._answer({"data": self._data(body["query"], body.get("variables") or {})})
        else:
            if "file_stream" in self.path:
                self._store(self.service.runs.setdefault(self.path.split("/")[4], StoredRun()), json.loads(text))
            self._answer({"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, run, name = self.path.split("/", 2)
        self.service.runs[run].uploads.add(name)
        self._answer({})

    def _text(self) -> bytes:
        text = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                text += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(text) if self.headers.get("Content-Encoding") == "gzip" else text

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _store(self, run: StoredRun, body: dict[str, Any]) -> None:
        for name, part in (body.get("files") or {}).items():
            offset = part.get("offset", 0)
            run.files[name][offset : offset + len(part["content"])] = part["content"]
        run.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])

    def _data(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What GraphQL answers, by what is asked for."""
        entity = {"id": "e", "name": variables.get("entity") or "me"}
        project = {"id": "p", "name": variables.get("project"), "entity": entity}
        runs, name = self.service.runs, variables.get("name")
        if "upsertBucket" in query:
            run = runs.setdefault(str(name), StoredRun())
            run.sent |= {key: value for key, value in variables.items() if value not in (None, "")}
            return {"upsertBucket": {"bucket": {**_bucket(str(name), run), "project": project}, "inserted": True}}
        if "RunResumeStatus" in query:
            run = runs.get(str(name), StoredRun())
            return {"model": {**project, "bucket": _bucket(str(name), run) if run.sent else None}}
        if "createRunFiles" in query:
            host, run_id = self.headers["Host"], variables["run"]
            urls = [{"name": file, "uploadUrl": f"http://{host}/{run_id}/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": urls}}
        if "viewer" in query:
            return {"viewer": {**USER, "teams": {"edges": []}}, "serverInfo": SERVER}
        return {"serverInfo": SERVER} if "serverInfo" in query else {}


def _bucket(name: str, run: StoredRun) -> dict[str, Any]:
    history, events = run.files["wandb-history.jsonl"], run.files["wandb-events.jsonl"]
    return {
        "id": "b",
        "name": name,
        "displayName": name,
        "description": "",
        "sweepName": None,
        "tags": run.sent.get("tags", []),
        "config": run.sent.get("config", "{}"),
        "summaryMetrics": (run.files["wandb-summary.json"] or ["{}"])[-1],
        "historyLineCount": len(history),
        "eventsLineCount": len(events),
        "logLineCount": len(run.files["output.log"]),
        "historyTail": json.dumps(history[-1:]),
        "eventsTail": json.dumps(events[-1:]),
        "logTail": "[]",
        "wandbConfig": json.dumps({"t": 1}),
    }
