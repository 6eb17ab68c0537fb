"""Run a server and announce it, for whoever asks `base_url: servers:FOLDER`.

    python -m autointerp.clients.announce results/mine/servers --port 0 -- \
        python -m vllm.entrypoints.openai.api_server --model MODEL --host 0.0.0.0 --port {port}

The command is started; once the server answers at the address that others will use, a file in the folder says so. The
file goes when the server does, when it stops answering, or when this process is told to end (SIGTERM, SIGINT, SIGUSR1).
Without a command, a server that runs beside is announced.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType

from autointerp.clients._announced import HEALTH_TIMEOUT, Announcement
from autointerp.clients._keys import find_key
from autointerp.errors import AutointerpError, UserError
from autointerp.shards import slurm_job

AGAIN = 1.0
"""Seconds between two looks at a server that is starting."""
EVERY = 10.0
"""Seconds between two looks at one that is announced."""
MISSES = 3
"""Health checks in a row that it may miss before it is withdrawn; it may have much to do."""
PATIENCE = 30.0
"""Seconds for which a server that was told to end is waited for."""
PORT = "{port}"

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def models_at(url: str) -> tuple[str, ...]:
    """Models that a server with this base URL serves; none while it does not answer, or is not well."""
    _, key = find_key(url)

    def get(address: str) -> bytes:
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {key}"})  # noqa: S310  (ours)
        with _direct.open(request, timeout=HEALTH_TIMEOUT) as answer:
            body: bytes = answer.read()
            return body

    try:
        try:
            get(url.removesuffix("/v1") + "/health")
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 404:
                    return ()
        return tuple(str(model["id"]) for model in json.loads(get(f"{url}/models"))["data"])
    except (OSError, ValueError, LookupError, TypeError):
        return ()


class Announcing:
    """A server, its file, and how both end."""

    def __init__(self, folder: Path, url: str, job: str, command: list[str], within: float) -> None:
        self.folder, self.url, self.job, self.command, self.within = folder, url, job, command, within
        self.path: Path | None = None
        self.stopping = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self.withdraw()

    def withdraw(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def run(self) -> int:
        """Until the server ends, or this process is told to; the server's exit code, 0 when it was told to."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self.stop)
        server = subprocess.Popen(self.command) if self.command else None
        try:
            self._watch(server)
            # One that was stopped from here has done as it was told.
            return _code(server.poll()) if server is not None and not self.stopping else 0
        finally:
            self.withdraw()
            if server is not None:
                _end(server)

    def _watch(self, server: subprocess.Popen[bytes] | None) -> None:
        began, missed, next_look = time.monotonic(), 0, 0.0
        while not self.stopping and (server is None or server.poll() is None):
            if time.monotonic() >= next_look:
                models = models_at(self.url)
                missed = 0 if models else missed + 1
                if models and self.path is None and not self.stopping:
                    self._announce(models)
                elif missed >= MISSES and self.path is not None:
                    print(f"{self.url} does not answer any more: withdrawn", file=sys.stderr, flush=True)
                    self.withdraw()
                    began = time.monotonic()
                elif self.path is None and time.monotonic() - began > self.within:
                    said = f"{self.url} did not answer within {self.within:,.0f} s"
                    raise AutointerpError(f"{said}: see the server's log; it has to be reachable at this address")
                next_look = time.monotonic() + (EVERY if self.path is not None else AGAIN)
            # A signal cuts this short only if it raises, and ours does not.
            time.sleep(0.2)

    def _announce(self, models: tuple[str, ...]) -> None:
        made = Announcement(self.url, models, socket.gethostname(), self.job)
        self.path = made.write(self.folder)
        print(f"announced {', '.join(models)} at {self.url} in {self.folder}", file=sys.stderr, flush=True)
        if self.stopping:
            self.withdraw()


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _code(code: int | None) -> int:
    """As a shell would say it."""
    return 0 if code is None else 128 - code if code < 0 else code


def _free_port() -> int:
    with socket.socket() as plug:
        plug.bind(("", 0))
        port: int = plug.getsockname()[1]
        return port


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m autointerp.clients.announce", description="Run a server and announce it in a folder."
    )
    parser.add_argument("folder", type=Path, help="where, e.g. servers in the run folder")
    parser.add_argument("--port", type=int, required=True, help=f"of the server; 0 takes a free one, named {PORT}")
    parser.add_argument("--host", default=socket.gethostname(), help="as others reach it (default: %(default)s)")
    parser.add_argument("--job", default=slurm_job(), help="for people (default: the Slurm job)")
    parser.add_argument("--within", type=float, default=1800.0, help="seconds for starting (default: %(default)s)")
    # Split here: argparse takes the command for empty when it sees the folder.
    given = sys.argv[1:] if arguments is None else arguments
    at = given.index("--") if "--" in given else len(given)
    ours, command = given[:at], given[at + 1 :]
    parser.epilog = f"After --: the command that starts the server; {PORT} in it is its port. None: it runs already."
    options = parser.parse_args(ours)
    try:
        if options.port == 0 and not any(PORT in word for word in command):
            raise UserError(f"--port 0 takes a free port: write {PORT} where the server's command takes it")
        port = options.port or _free_port()
        command = [word.replace(PORT, str(port)) for word in command]
        host = f"[{options.host}]" if ":" in options.host else options.host
        return Announcing(options.folder, f"http://{host}:{port}/v1", options.job, command, options.within).run()
    except AutointerpError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {' '.join(command) or options.folder}: {error.strerror or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
