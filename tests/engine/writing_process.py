"""Writes replies to a cache until it is killed; prints the number of each one once `record` has returned."""

from __future__ import annotations

import sys
from pathlib import Path

from autointerp.engine.replies import Cost, open_cache
from prompts.requests import ChatReply, Usage

cache = open_cache(Path(sys.argv[1]))
for i in range(10**9):
    cache.record(
        "stage", "model", Cost(Usage(3, 2), 0.25), ("usd", 1.0), f"key {i}", ChatReply(f"reply {i} " + "x" * i)
    )
    print(i, flush=True)
