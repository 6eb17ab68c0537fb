"""The small demo as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def start_demo(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autointerp", "demo", "--small", "--plain", "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish_demo(out: Path) -> str:
    """Run it to its end; what it printed on stdout, then on stderr."""
    process = start_demo(out)
    printed, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return printed + said
