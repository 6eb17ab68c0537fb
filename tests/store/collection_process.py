"""Collections in processes that kill themselves at a given moment, forked from one that has imported everything.

The server is given the subject model, and reads a line of JSON a collection: `{"out": folder, "text": file,
"sae": folder, "kill": [moment, n], "after": seconds, "log": file}`. It has a process do it, and prints the status
that it ended with. `after` so long it is killed from outside (if not null). A moment is `what:file`, of which the
n-th time counts:

- `append`, `close`: an array is being written
- `half`, `replace`: a file is whole but for its second half, or whole, and still under its temporary name
- `replaced`: it has its final name
- `call`: a function of the names below is about to be called
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH_TOKENS = 320
BUDGET = 400
PART_BYTES = {"planted": 400, "deep": 25_000}
"""So that both have about as many parts: one fires on few tokens, the other on all."""


def targets_of(sae_folder: str, out: Path) -> list[Any]:
    import planted

    import sae
    from autointerp.collect.encode import Target
    from sae.architectures import topk

    other = topk.create({"d_in": planted.WIDTH, "n_latents": 24, "k": 4}, sae.SAEMetadata())
    other.initialise(seed=0)
    return [
        Target(sae.load(sae_folder), planted.HOOKPOINT, out / "planted", {"sae_sha": "planted"}),
        Target(other, "layers.1", out / "deep", {"sae_sha": "deep"}),
    ]


def collect(out: Path, text: str, subject: Any, sae: str, at: Callable[[str], None], log: Path) -> None:
    """The whole of it, in many small parts, from the text to two finished stores. `at` hears of every moment."""
    from autointerp.collect import encode
    from autointerp.collect.tokenise import tokenise
    from autointerp.config import DataSettings
    from autointerp.store import writer

    def in_small_parts(*args: Any, **how: Any) -> writer.StoreWriter:
        return writer.StoreWriter(*args, **{**how, "part_bytes": PART_BYTES[args[0].name]})

    watch(at)
    real = encode._encode

    def logged(subject: Any, writing: Any, blocks: Any, span: slice) -> None:
        real(subject, writing, blocks, span)
        with log.open("a") as file:
            file.writelines(f"{target.folder.name} {span.start} {span.stop}\n" for target, _ in writing)

    encode._encode = logged
    encode.StoreWriter = in_small_parts  # type: ignore[assignment,misc]
    data = DataSettings(dataset=text, tokens=6000, context_length=32, skip_first=1, batch_tokens=BATCH_TOKENS)
    targets = targets_of(sae, out)
    blocks = tokenise(subject, data, targets[0].folder, seed=0, skip_documents=0)
    encode.collect_stores(
        subject, targets, blocks, batch_tokens=BATCH_TOKENS, budget=BUDGET,
        on_entries=lambda done, total: at("call:range"),
    )  # fmt: skip


def watch(at: Callable[[str], None]) -> None:
    """Have `at` called at every moment."""
    from autointerp.files import ArrayWriter
    from autointerp.store import writer

    def before(owner: Any, name: str, say: Callable[..., None]) -> None:
        real = getattr(owner, name)

        def spied(*args: Any, **how: Any) -> Any:
            say(*args)
            return real(*args, **how)

        setattr(owner, name, spied)

    def final(path: Path) -> str:
        """`tokens.npy` of `.tokens.npy.123.tmp`."""
        return path.name.removeprefix(".").rsplit(".", 2)[0] if path.suffix == ".tmp" else f"spool/{path.name}"

    replace = Path.replace

    def replacing(self: Path, target: Path) -> Path:
        whole = self.read_bytes()
        self.write_bytes(whole[: len(whole) // 2])
        at(f"half:{target.name}")
        self.write_bytes(whole)
        at(f"replace:{target.name}")
        result = replace(self, target)
        at(f"replaced:{target.name}")
        return result

    def rmtree(path: Path, **how: Any) -> None:
        if Path(path).name == "parts" and Path(path).is_dir():
            for part in sorted(Path(path).iterdir())[:2]:
                part.unlink()
            at("call:rmtree")

    Path.replace = replacing  # type: ignore[method-assign,assignment]
    before(ArrayWriter, "append", lambda self, rows: at(f"append:{final(self.path)}"))
    before(ArrayWriter, "close", lambda self: at(f"close:{final(self.path)}"))
    before(writer, "write_statistics", lambda *args: at("call:statistics"))
    before(writer, "merge", lambda *args: at("call:merge"))
    before(writer.StoreWriter, "add", lambda *args: at("call:add"))
    before(writer.StoreWriter, "flush", lambda *args: at("call:flush"))
    before(shutil, "rmtree", rmtree)


def serve() -> None:
    import torch

    import autointerp.collect.encode
    import autointerp.collect.tokenise  # noqa: F401
    from autointerp.subject.load import load_subject

    torch.set_num_threads(1)  # threads do not come along to a forked process
    subject = load_subject(sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            carry_out(order, subject)
        if order["after"] is not None:
            time.sleep(order["after"])
            os.kill(child, signal.SIGKILL)  # ours until it has been waited for, ended or not
        print(os.waitpid(child, 0)[1], flush=True)


def carry_out(order: dict[str, Any], subject: Any) -> None:
    kill, seen = order["kill"], Counter[str]()

    def at(moment: str) -> None:
        seen[moment] += 1
        if kill and fnmatch.fnmatch(moment, kill[0]):
            seen["it"] += 1
            if seen["it"] == kill[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        collect(Path(order["out"]), order["text"], subject, order["sae"], at, Path(order["log"]))
        code = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


@dataclass
class Collections:
    """The server, as tests use it."""

    process: subprocess.Popen[str]
    about: dict[str, str]
    log: Path

    def run(self, out: Path, kill: tuple[str, int] | None = None, after: float | None = None) -> int:
        """Collect, or go on: 0, or minus the signal that ended it."""
        assert self.process.stdin and self.process.stdout
        self.log.unlink(missing_ok=True)
        order = {**self.about, "out": str(out), "kill": kill, "after": after, "log": str(self.log)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))

    def encoded(self) -> list[tuple[str, int, int]]:
        """Contexts that the last one encoded: store, first, end."""
        lines = self.log.read_text().split("\n")[:-1] if self.log.is_file() else []
        return [(name, int(first), int(end)) for name, first, end in map(str.split, lines)]


@contextmanager
def collections(model: Path, about: dict[str, str], log: Path) -> Iterator[Collections]:
    command = [sys.executable, __file__, str(model)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Collections(process, about, log)
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(30)


if __name__ == "__main__":
    serve()
