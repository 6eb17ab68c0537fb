"""A file system in memory, of a size of our choice, for which one has to be root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MB = 2**20


class Disk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("size=1m")

    def _mount(self, options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def resize(self, size: float) -> None:
        """To so many MB."""
        self._mount(f"remount,size={int(size * MB) // 4096 * 4096}")

    @property
    def used(self) -> float:
        """MB."""
        return shutil.disk_usage(self.folder).used / MB


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    if shutil.which("mount") is None:
        pytest.skip("there is no `mount` here")
    made = Disk(folder)
    try:
        yield made
    finally:
        # Arrays that a caught error's frames still map keep the disk busy; it goes with them.
        subprocess.run(["umount", "--lazy", str(made.folder)], check=True)
