"""Every random draw has a seed of its own, made from (run seed, stage, id): order and shards change nothing."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, stage: str, *ids: int | str) -> int:
    """A 63-bit seed for one purpose."""
    text = "\x1f".join([str(seed), stage, *map(str, ids)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, stage: str, *ids: int | str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, stage, *ids))
