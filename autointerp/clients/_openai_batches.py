"""OpenAI's batch API: files of requests that are answered within a day, for half the price."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autointerp.clients._openai_replies import said

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PENDING = frozenset({"validating", "in_progress", "finalizing", "cancelling"})


@dataclass(frozen=True, slots=True)
class BatchState:
    status: str
    done: int
    total: int
    files: tuple[str, ...]
    """Of answers and of errors."""
    problem: str = ""

    @property
    def ended(self) -> bool:
        return self.status not in PENDING


class BatchAPI:
    """Raises the SDK's errors; a batch that is lost to one is found again by its id."""

    def __init__(self, sdk: AsyncOpenAI) -> None:
        self._sdk = sdk

    async def submit(self, path: str, bodies: Mapping[str, Mapping[str, Any]]) -> str:
        """Send bodies by their own ids to `path` (such as /chat/completions); returns the id of the batch."""
        lines = [
            json.dumps({"custom_id": key, "method": "POST", "url": f"/v1{path}", "body": body})
            for key, body in bodies.items()
        ]
        content = ("\n".join(lines) + "\n").encode()
        file = await self._sdk.files.create(file=("requests.jsonl", content), purpose="batch")
        endpoint: Any = f"/v1{path}"
        batch = await self._sdk.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
        return batch.id

    async def look(self, batch: str) -> BatchState:
        found = await self._sdk.batches.retrieve(batch)
        counts = found.request_counts
        problems = [error.message or "" for error in (found.errors.data or [])] if found.errors else []
        return BatchState(
            status=found.status,
            done=(counts.completed + counts.failed) if counts else 0,
            total=counts.total if counts else 0,
            files=tuple(name for name in (found.output_file_id, found.error_file_id) if name),
            problem="; ".join(problems),
        )

    async def answers(self, files: Sequence[str]) -> dict[str, tuple[int, Any]]:
        """HTTP status and body by the ids that the bodies were sent under. Lines that are no answers are left out."""
        found: dict[str, tuple[int, Any]] = {}
        for name in files:
            content = await self._sdk.files.content(name)
            # Not `splitlines`: JSON holds line separators of other kinds as they are.
            for line in content.text.split("\n"):
                try:
                    entry = json.loads(line)
                    response = entry.get("response") or {"status_code": 500, "body": {"error": entry.get("error")}}
                    found[str(entry["custom_id"])] = int(response["status_code"]), response["body"]
                except (ValueError, LookupError, TypeError, AttributeError):
                    continue
        return found


def error_said(body: object) -> str:
    """What the body of a failed line says."""
    return said(body.get("error") if isinstance(body, Mapping) else body)
