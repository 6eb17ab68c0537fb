"""The static HTML report: a folder that opens from `file://`, without network or server."""

from __future__ import annotations

from autointerp.report.build import build_report

__all__ = ["build_report"]
