"""The small demo as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


def start_demo(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autointerp", "demo", "--small", "--plain", "--out", str(out)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        # A shell's background jobs ignore Ctrl-C, and would hand that on; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish_demo(out: Path) -> str:
    """Run it to its end; what it printed on stdout, then on stderr."""
    process = start_demo(out)
    printed, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return printed + said
