"""Sparse autoencoders: architectures, training, checkpoints. Usable alone; needs torch and safetensors only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.base import SAEConfig as SAEConfig
    from sae.base import SAEMetadata as SAEMetadata
    from sae.base import SparseAutoencoder as SparseAutoencoder
    from sae.codes import SparseCodes as SparseCodes
    from sae.errors import SAEError as SAEError
    from sae.files import content_sha as content_sha
    from sae.files import load as load
    from sae.files import save as save
    from sae.learner import LearnConfig as LearnConfig
    from sae.learner import Learner as Learner
    from sae.sources import Replay as Replay
    from sae.sources import Rows as Rows
    from sae.trainer import TrainConfig as TrainConfig
    from sae.trainer import Trainer as Trainer
    from sae.trainer import train_all as train_all

_WHERE = {
    "SAEConfig": "sae.base",
    "SAEMetadata": "sae.base",
    "SparseAutoencoder": "sae.base",
    "SparseCodes": "sae.codes",
    "SAEError": "sae.errors",
    "content_sha": "sae.files",
    "load": "sae.files",
    "save": "sae.files",
    "LearnConfig": "sae.learner",
    "Learner": "sae.learner",
    "Replay": "sae.sources",
    "Rows": "sae.sources",
    "TrainConfig": "sae.trainer",
    "Trainer": "sae.trainer",
    "train_all": "sae.trainer",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'sae' has no attribute '{name}'")
