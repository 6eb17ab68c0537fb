"""The fake server's files and batches, as OpenAI's Batch API has them. Everything is kept in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autointerp.clients._fake_faults import NO_SUCH_PATH, Fault, answered

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
LINES_AT_ONCE = 32
"""After so many lines the server turns to its connections."""

STAMPS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")

Perform = Callable[[str, dict[str, Any], bool], Any]
"""The answer to a line: its path, its body, and whether the batch came with an Authorization."""


@dataclass(slots=True)
class Batch:
    """A batch as it is shown, and what it takes to work on it."""

    shown: dict[str, Any]
    lines: list[dict[str, Any]]
    authorized: bool
    cancel: asyncio.Event = field(default_factory=asyncio.Event)

    def become(self, status: str) -> None:
        """Change the status and note when."""
        self.shown["status"] = status
        self.shown[f"{status}_at"] = int(time.time())


class Batches:
    """`perform` answers the lines of a batch, all of them once `seconds` have passed since it was made."""

    def __init__(self, perform: Perform, seconds: float) -> None:
        self._perform = perform
        self._seconds = seconds
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._batches: dict[str, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def upload(self, form: Mapping[str, tuple[str, bytes]]) -> dict[str, Any] | Fault:
        """POST /v1/files with the parts of a form (see `read_form`)."""
        purpose = form.get("purpose", ("", b""))[1].decode("utf-8", "replace")
        if "file" not in form or not purpose:
            return Fault(status=400, message="bad request: a file and its purpose are needed")
        name, data = form["file"]
        return self._keep(name, purpose, data)

    def get(self, path: str) -> dict[str, Any] | bytes | Fault:
        """GET /v1/batches, /v1/batches/ID, /v1/files, /v1/files/ID and /v1/files/ID/content."""
        kind, name, rest = _split(path)
        if kind == "batches" and not rest:
            if not name:
                return _listed([batch.shown for batch in reversed(self._batches.values())])
            return self._batches[name].shown if name in self._batches else _missing("batch", name)
        if kind == "files" and rest in ("", "content"):
            if not name:
                return _listed([shown for shown, _ in reversed(self._files.values())])
            if name not in self._files:
                return _missing("file", name)
            return self._files[name][1 if rest else 0]
        return NO_SUCH_PATH

    def delete(self, path: str) -> dict[str, Any] | Fault:
        """DELETE /v1/files/ID."""
        kind, name, rest = _split(path)
        if kind != "files" or not name or rest:
            return NO_SUCH_PATH
        if self._files.pop(name, None) is None:
            return _missing("file", name)
        return {"id": name, "object": "file", "deleted": True}

    def post(self, path: str, body: dict[str, Any], authorized: bool) -> dict[str, Any] | Fault:
        """POST /v1/batches and /v1/batches/ID/cancel."""
        kind, name, rest = _split(path)
        if kind == "batches" and not name:
            return self._create(body, authorized)
        if kind == "batches" and rest == "cancel":
            return self._cancel(name)
        return NO_SUCH_PATH

    def _create(self, body: dict[str, Any], authorized: bool) -> dict[str, Any] | Fault:
        source, endpoint = str(body.get("input_file_id")), str(body.get("endpoint"))
        if source not in self._files or self._files[source][0]["purpose"] != "batch":
            return Fault(status=400, message=f"bad request: no file {source!r} with the purpose batch")
        if endpoint not in ENDPOINTS or body.get("completion_window") != "24h":
            return Fault(status=400, message=f"bad request: endpoint in {ENDPOINTS}, completion_window 24h")
        lines, errors = _read_lines(self._files[source][1], endpoint)
        now = int(time.time())
        shown: dict[str, Any] = {
            "id": f"batch_{len(self._batches) + 1}",
            "object": "batch",
            "endpoint": endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": source,
            "completion_window": "24h",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + 86_400,
            **{f"{stamp}_at": None for stamp in STAMPS},
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }
        batch = self._batches[shown["id"]] = Batch(shown, lines, authorized)
        if errors:
            batch.become("failed")
            return shown
        batch.become("in_progress")
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return shown

    def _cancel(self, name: str) -> dict[str, Any] | Fault:
        batch = self._batches.get(name)
        if batch is None:
            return _missing("batch", name)
        if batch.shown["status"] != "in_progress":
            return Fault(status=409, message=f"cannot cancel a batch that is {batch.shown['status']}")
        batch.become("cancelling")
        batch.cancel.set()
        return batch.shown

    async def _run(self, batch: Batch) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(batch.cancel.wait(), self._seconds)
        outputs: list[str] = []
        failures: list[str] = []
        for i, line in enumerate(batch.lines):
            if i % LINES_AT_ONCE == 0:
                await asyncio.sleep(0)
            if batch.cancel.is_set():
                break
            result = _result(self._perform(line["url"], line["body"], batch.authorized))
            good = result["response"] is not None and result["response"]["status_code"] == 200
            written = {"id": f"batch_req_{i}", "custom_id": line["custom_id"], **result}
            (outputs if good else failures).append(json.dumps(written))
            batch.shown["request_counts"]["completed" if good else "failed"] += 1
        for key, found in (("output_file_id", outputs), ("error_file_id", failures)):
            # Real ones come in any order. The seed is the batch's name, so that a test can be run again.
            random.Random(batch.shown["id"]).shuffle(found)
            if found:
                data = "".join(f"{text}\n" for text in found).encode()
                batch.shown[key] = self._keep(f"{batch.shown['id']}_{key}.jsonl", "batch_output", data)["id"]
        batch.lines.clear()
        batch.become("cancelled" if batch.cancel.is_set() else "completed")

    def _keep(self, name: str, purpose: str, data: bytes) -> dict[str, Any]:
        shown: dict[str, Any] = {"object": "file", "bytes": len(data), "created_at": int(time.time()), "filename": name}
        # Not the number of files: deleted ones must not give their name away.
        last = int(next(reversed(self._files), "file-0").removeprefix("file-"))
        shown |= {"id": f"file-{last + 1}", "purpose": purpose, "status": "processed"}
        self._files[shown["id"]] = (shown, data)
        return shown


def read_form(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """File name (may be empty) and data of each part of a multipart form, by the part's name.

    Raises:
        ValueError: it is none.
    """
    boundary = re.search(r'multipart/form-data;.*boundary="?([^";]+)"?', content_type)
    if boundary is None:
        raise ValueError("not a multipart form")
    form = {}
    for part in body.split(b"--" + boundary.group(1).encode("latin-1"))[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        fields = dict(re.findall(r'[; ](name|filename)="([^"]*)"', head.decode("utf-8", "replace")))
        if "name" not in fields:
            raise ValueError("a part without a name")
        form[fields["name"]] = (fields.get("filename", ""), data.removesuffix(b"\r\n"))
    return form


def _read_lines(data: bytes, endpoint: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The requests in an input file, and what is wrong with it."""
    lines: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    names: set[str] = set()
    for number, text in enumerate(filter(bytes.strip, data.split(b"\n")), start=1):
        try:
            line = json.loads(text)
            name, body = line["custom_id"], line["body"]
            if line["method"] != "POST" or line["url"] != endpoint or not isinstance(body, dict):
                raise ValueError(f"method has to be POST, url {endpoint}, and body an object")
            if not isinstance(name, str) or name in names:
                raise ValueError("custom_id has to be a string of its own")
        except (LookupError, TypeError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            errors.append({"code": "invalid_request", "line": number, "message": said, "param": None})
        else:
            names.add(name)
            lines.append(line)
    if not lines and not errors:
        errors.append({"code": "empty_file", "line": None, "message": "the input file is empty", "param": None})
    return lines, errors


def _result(content: Any) -> dict[str, Any]:
    """`response` and `error` of a line in an output or error file."""
    answer = answered(content)
    try:
        if answer is None:
            raise ValueError("no answer")
        response = {"status_code": answer[0], "request_id": "req_fake", "body": json.loads(answer[1])}
    except ValueError:
        message = f"the model gave no answer ({content.kind})"
        return {"response": None, "error": {"code": "server_error", "message": message}}
    return {"response": response, "error": None}


def _split(path: str) -> tuple[str, str, str]:
    kind, _, rest = path.removeprefix("/v1/").partition("/")
    name, _, rest = rest.partition("/")
    return kind, name, rest


def _listed(items: list[dict[str, Any]]) -> dict[str, Any]:
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return {"object": "list", "data": items, **ends, "has_more": False}


def _missing(kind: str, name: str) -> Fault:
    return Fault(status=404, message=f"no {kind} {name!r}")
