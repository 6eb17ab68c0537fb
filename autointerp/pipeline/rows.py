"""Rows that every stage writes alike: failures and usage."""

from __future__ import annotations

from typing import Any

from autointerp.engine.drive import Finished


def failure_rows(run_id: str, stage: str, latent: int, finished: Finished) -> list[dict[str, Any]]:
    return [
        {"run_id": run_id, "stage": stage, "latent": latent, "kind": f.kind, "message": f.message, "reply_sha": sha}
        for sha, f in finished.failures
    ]


def usage_rows(run_id: str, stage: str, finished: Finished) -> list[dict[str, Any]]:
    """Price is null: what a model costs is not known here."""
    return [
        {
            "run_id": run_id, "stage": stage, "model": model, "calls": spent.calls, "cached_calls": 0,
            "prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens, "price": None,
            "seconds": spent.seconds,
        }
        for model, spent in finished.spent.items()
    ]  # fmt: skip
