"""A process that does a share of a stage, and says so in the run folder while it does."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Thread

from autointerp.config import RunSettings
from autointerp.errors import AutointerpError, UserError
from autointerp.jobs.progress import FINDERS, Progress
from autointerp.jobs.states import DONE, FAILED, INTERRUPTED, RUNNING, State
from autointerp.shards import WHOLE, Shard, slurm_job

BEAT = 20.0
"""Seconds between two notes of how long an element has run."""


@contextmanager
def element(folder: Path, stage: str, settings: RunSettings, shard: Shard = WHOLE) -> Iterator[None]:
    """Say in the run folder that this share is being done, how long already, and how it ended.

    Raises:
        UserError: the folder cannot be written.
    """
    progress = Progress(folder, settings, to_show=True)
    before = progress.share(stage, shard).done if stage in FINDERS else 0
    notes = _Notes(
        folder,
        State(
            stage, shard.index, shard.count, RUNNING, progress.of, before, socket.gethostname(), slurm_job(),
            os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S%z"),
        ),
    )  # fmt: skip
    try:
        notes.write()
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error.strerror}; choose another --out") from error
    with notes.beating():
        try:
            yield
        except BaseException as error:
            notes.end(*_ending(error))
            raise
        notes.end(DONE, 0, "")


def _ending(error: BaseException) -> tuple[str, int, str]:
    """State, exit code and one line."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, 130, "told to end: what was finished is kept"
    if isinstance(error, AutointerpError):
        return FAILED, error.exit_code, said
    return FAILED, 1, f"{type(error).__name__}: {said}"


@dataclass
class _Notes:
    folder: Path
    state: State
    _lock: Lock = field(default_factory=Lock)
    _ended: Event = field(default_factory=Event)
    _began: float = field(default_factory=time.monotonic)

    def write(self) -> None:
        self.state = replace(self.state, seconds=round(time.monotonic() - self._began, 1))
        self.state.write(self.folder)

    def end(self, state: str, code: int, said: str) -> None:
        self._ended.set()
        with self._lock:
            self.state = replace(self.state, state=state, code=code, said=said)
            # What happened is said by the exit code, too; a note of it must not hide it.
            with suppress(OSError, AutointerpError):
                self.write()

    @contextmanager
    def beating(self) -> Iterator[None]:
        thread = Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._lock, suppress(OSError, AutointerpError):
                if not self._ended.is_set():
                    self.write()
