"""A stand-in for W&B's service: enough of its API for wandb 0.31 to send a run.

    python tests/wandb_stub.py PORT LOG

Every line of LOG is a message of the run's file stream (rows, state, exit code), as JSON.
"""

import gzip
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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


class Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(gzip.decompress(text) if self.headers.get("Content-Encoding") == "gzip" else text or b"{}")
        if self.path.startswith("/graphql"):
            self._answer({"data": _data(body["query"], body.get("variables") or {})})
            return
        if "file_stream" in self.path:
            with open(sys.argv[2], "a") as log:
                log.write(json.dumps(body) + "\n")
        self._answer({"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer({})

    def _answer(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _data(query: str, variables: dict[str, Any]) -> dict[str, Any]:
    """What GraphQL answers, by what is asked for."""
    project = {"id": "p", "name": "superfer", "entity": {"id": "e", "name": "me"}}
    if "upsertBucket" in query:
        name = variables.get("name")
        bucket = {"id": "b", "name": name, "displayName": name, "description": "", "config": "{}", "sweepName": None}
        return {"upsertBucket": {"bucket": {**bucket, "project": project, "historyLineCount": 0}, "inserted": True}}
    if "RunResumeStatus" in query:
        return {"model": {**project, "bucket": None}}
    if "createRunFiles" in query:
        urls = [{"name": name, "uploadUrl": f"http://127.0.0.1:{sys.argv[1]}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": urls}}
    if "viewer" in query:
        return {"viewer": {**USER, "teams": {"edges": []}}, "serverInfo": SERVER}
    return {"serverInfo": SERVER} if "serverInfo" in query else {}


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Stub).serve_forever()
