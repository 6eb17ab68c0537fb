"""Rows that every stage writes alike."""

from __future__ import annotations

from typing import Any

from autointerp.engine.drive import Finished


def failure_rows(run_id: str, stage: str, latent: int, finished: Finished) -> list[dict[str, Any]]:
    return [
        {"run_id": run_id, "stage": stage, "latent": latent, "kind": f.kind, "message": f.message, "reply_sha": sha}
        for sha, f in finished.failures
    ]
