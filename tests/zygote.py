"""A process that has imported everything and forks `autointerp` commands, so that starting one takes no time.

    with Zygote() as zygote:
        command = zygote.start("explain", "--sae", ...)
        os.kill(command.pid, signal.SIGKILL)
        command.wait()

It never runs a tensor itself: a fork of a process with busy threads would hang.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO


class Command:
    def __init__(self, pid: int, said: Path, out: IO[str]) -> None:
        self.pid, self._said, self._out = pid, said, out

    def alive(self) -> bool:
        """Whether it still runs; its end is told by `wait`."""
        state = Path(f"/proc/{self.pid}/stat")
        try:
            return state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        return int(self._out.readline())

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._said.read_text()


class Zygote:
    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0

    def __enter__(self) -> Zygote:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None and self._process.stdin is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, *args: object) -> Command:
        """One at a time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._count += 1
        said = self.folder / f"said-{self._count}.txt"
        self._process.stdin.write(json.dumps([str(said), *map(str, args)]) + "\n")
        self._process.stdin.flush()
        return Command(int(self._process.stdout.readline()), said, self._process.stdout)


def serve() -> None:
    import openai
    import pandas
    import scipy.stats
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import autointerp.cli
    import autointerp.cli.commands
    import autointerp.pipeline.explain
    import autointerp.pipeline.score
    import autointerp.report
    from autointerp.cli import main

    loaded = (openai, pandas, scipy.stats, torch, transformers, AutoModelForCausalLM, AutoTokenizer, autointerp)
    assert all(loaded)
    print("ready", flush=True)
    for line in sys.stdin:
        said, *args = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with open(said, "w") as file:  # noqa: PTH123
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.argv = ["autointerp", *args]
            code = 1
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
