"""autointerp: what the latents of a sparse autoencoder mean, in plain language, and how far that can be trusted."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autointerp.pipeline.compare import compare as compare
    from autointerp.pipeline.compare import comparison as comparison
    from autointerp.report import build_report as build_report
    from autointerp.stats.summary import summarise as summarise
    from autointerp.tables.load import load_explanations as load_explanations
    from autointerp.tables.load import load_latents as load_latents
    from autointerp.tables.load import load_scores as load_scores
    from autointerp.tables.load import load_table as load_table

__version__ = "0.1.0"

_WHERE = {
    "build_report": "autointerp.report",
    "compare": "autointerp.pipeline.compare",
    "comparison": "autointerp.pipeline.compare",
    "load_explanations": "autointerp.tables.load",
    "load_latents": "autointerp.tables.load",
    "load_scores": "autointerp.tables.load",
    "load_table": "autointerp.tables.load",
    "summarise": "autointerp.stats.summary",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'autointerp' has no attribute '{name}'")
