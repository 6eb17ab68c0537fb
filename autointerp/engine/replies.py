"""Answers that were paid for, and what they cost, in one SQLite file per process.

A reply is on disk before anybody reads it, together with its cost, in one transaction: a killed run asks again only
what was in flight. Keys hold everything that shapes an answer and nothing else, so a changed prompt, model, server or
temperature never gets an old one. Replies are kept as JSON and never evaluated.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from autointerp.errors import Damaged, DiskFull
from prompts.requests import (
    ChatReply,
    ChoiceReply,
    EmbedReply,
    Failure,
    LikelihoodReply,
    Reply,
    Request,
    SteerReply,
    Usage,
    fingerprint,
)

KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (ChatReply, ChoiceReply, LikelihoodReply, EmbedReply, SteerReply, Failure)
}
KEPT_FAILURES = frozenset({"refused", "empty", "truncated", "context_overflow"})
"""Failures that were paid for, or would come again; other ones are asked anew by the next run."""

LOST = "killed"
"""The stage under which is booked what was in flight when a process with a budget was killed."""
REPLIES = "replies.sqlite"
MOST_PROCESSES = 512
SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, stage TEXT, model TEXT, reply TEXT, at REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    stage TEXT, model TEXT, calls INTEGER, retries INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER,
    prefix_cached_tokens INTEGER, unsure_tokens INTEGER, price REAL, seconds REAL,
    cached_calls INTEGER, saved_tokens INTEGER, saved_price REAL, PRIMARY KEY (stage, model)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (unit TEXT PRIMARY KEY, amount REAL) WITHOUT ROWID;
"""

COUNTED = (
    "calls", "retries", "prompt_tokens", "completion_tokens", "prefix_cached_tokens", "unsure_tokens", "price",
    "seconds", "cached_calls", "saved_tokens", "saved_price",
)  # fmt: skip
"""What is added up by stage and model, in the order of the table's columns."""
ADD = (
    f"INSERT INTO spent VALUES ({', '.join('?' * (2 + len(COUNTED)))}) "  # noqa: S608  (our own names)
    "ON CONFLICT (stage, model) DO UPDATE SET " + ", ".join(f"{name} = {name} + excluded.{name}" for name in COUNTED)
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one attempt. `price` in USD is None where nobody knows it."""

    usage: Usage = field(default=Usage())
    price: float | None = None
    unsure: int = 0
    """Tokens that may have been charged, at worst: the answer never came."""
    retry: bool = False
    """It was not the first attempt at its request."""
    seconds: float = 0.0


def key_of(model: str, identity: str, request: Request) -> str:
    """Of a request to one model of one server; it holds the sample index, and neither time-outs nor concurrency."""
    return fingerprint([model, identity, type(request).__name__, fingerprint(request)])


class ReplyCache:
    """`path` None keeps everything in memory. With `again`, failures that are kept count as not there.

    Raises:
        BlockingIOError: another process has the file.
        Damaged: it is no such file.
    """

    def __init__(self, path: Path | None = None, *, again: bool = False) -> None:
        self.path, self.again = path, again
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path or ":memory:", timeout=0.2, isolation_level=None, check_same_thread=False)
        with self._named():
            # Alone in the file, SQLite needs no shared memory, which network file systems do not have.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("BEGIN EXCLUSIVE")
            self._db.execute("COMMIT")
            self._db.executescript(SCHEMA)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise BlockingIOError(f"another process uses '{self.path}'") from error
            if "full" in str(error) or "disk I/O" in str(error):
                raise DiskFull(
                    f"no room to write '{self.path}': what was finished is kept; free some space and run the same "
                    "command again"
                ) from error
            raise
        except sqlite3.DatabaseError as error:
            raise Damaged(
                f"'{self.path}' is damaged ({error}): remove it; the replies in it will be asked for again"
            ) from error

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM replies").fetchone()[0])

    def get(self, key: str) -> Reply | None:
        row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        reply = decoded(row[0]) if row else None
        return None if self.again and isinstance(reply, Failure) else reply

    def saved(self, stage: str, model: str, usage: Usage, price: float | None) -> None:
        """Book an answer that was there already, and what it would have cost."""
        with self._named():
            tokens = usage.prompt_tokens + usage.completion_tokens
            self._add(stage, model, cached_calls=1, saved_tokens=tokens, saved_price=price)

    def record(
        self, stage: str, model: str, cost: Cost, held: tuple[str, float] | None = None,
        key: str | None = None, reply: Reply | None = None,
    ) -> None:  # fmt: skip
        """Book one attempt, and keep its reply under `key` if it is one to keep; `held` is what the budget still has
        reserved, which counts as spent if this process is killed."""
        usage = cost.usage
        with self._named():
            self._db.execute("BEGIN")
            if key is not None and reply is not None and _kept(reply):
                self._db.execute(
                    "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)",
                    (key, stage, model, encoded(reply), time.time()),
                )
            self._add(
                stage, model, calls=1, retries=int(cost.retry), prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens, prefix_cached_tokens=usage.cached_tokens,
                unsure_tokens=cost.unsure, price=cost.price, seconds=cost.seconds,
            )  # fmt: skip
            if held is not None:
                self._db.execute("INSERT OR REPLACE INTO held VALUES (?, ?)", held)
            self._db.execute("COMMIT")

    def hold(self, unit: str, amount: float) -> None:
        with self._named():
            self._db.execute("INSERT OR REPLACE INTO held VALUES (?, ?)", (unit, amount))

    def book_lost(self) -> None:
        """Count what killed processes had in flight as spent, at worst."""
        lost = dict(self._db.execute("SELECT unit, amount FROM held WHERE amount > 0"))
        if not lost:
            return
        with self._named():
            self._db.execute("BEGIN")
            self._add(LOST, "", unsure_tokens=round(lost.get("tok", 0)), price=lost.get("usd", 0.0))
            self._db.execute("DELETE FROM held")
            self._db.execute("COMMIT")

    def spent(self) -> list[dict[str, Any]]:
        """One row per stage and model."""
        cursor = self._db.execute("SELECT * FROM spent ORDER BY stage, model")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def forget_replies(self, stage: str | None = None) -> None:
        """`--fresh`: ask everything, or one stage, anew. What was spent stays in the books."""
        with self._named():
            self._db.execute("DELETE FROM replies WHERE ? IS NULL OR stage = ?", (stage, stage))

    def absorb(self, other: Path) -> bool:
        """Take over what another cache holds, and delete it; False where another process is writing it."""
        try:
            theirs = ReplyCache(other)
        except BlockingIOError:
            return False
        with self._named():
            self._db.execute("BEGIN")
            rows = theirs._db.execute("SELECT * FROM replies")
            while some := rows.fetchmany(1000):
                self._db.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", some)
            for row in theirs.spent():
                self._add(row.pop("stage"), row.pop("model"), **row)
            for unit, amount in theirs._db.execute("SELECT unit, amount FROM held"):
                self._db.execute("INSERT INTO held VALUES (?, ?) ON CONFLICT (unit) DO UPDATE SET amount = amount + "
                                 "excluded.amount", (unit, amount))  # fmt: skip
            self._db.execute("COMMIT")
        theirs.close()
        other.unlink()
        return True

    def _add(self, stage: str, model: str, **amounts: float | None) -> None:
        """Add to the books. A price that is unknown (None) makes the sum unknown."""
        self._db.execute(ADD, (stage, model, *(amounts.get(name, 0) for name in COUNTED)))

    def close(self) -> None:
        self._db.close()


def open_cache(folder: Path, *, again: bool = False) -> ReplyCache:
    """The run's `replies.sqlite`, or another file beside it while other processes have that one.

    The first process takes over what finished ones have left.
    """
    for n in range(1, MOST_PROCESSES):
        name = REPLIES if n == 1 else f"replies-{n}.sqlite"
        try:
            cache = ReplyCache(folder / name, again=again)
        except BlockingIOError:
            continue
        if n == 1:
            for path in sorted(folder.glob("replies-*.sqlite")):
                cache.absorb(path)
        return cache
    raise BlockingIOError(f"more than {MOST_PROCESSES} processes use '{folder}'")


def merge(sources: list[Path], into: Path) -> ReplyCache:
    """Unite reply caches in one file. Sources are left as they are.

    Raises:
        BlockingIOError: a process is writing one of them.
    """
    cache = ReplyCache(into)
    for source in sources:
        copy = into.with_name(f".{source.name}.merging")
        from_db, to_db = sqlite3.connect(source, timeout=0.2), sqlite3.connect(copy)
        try:
            from_db.backup(to_db)
        except sqlite3.OperationalError as error:
            raise BlockingIOError(f"another process uses '{source}'") from error
        finally:
            from_db.close()
            to_db.close()
        cache.absorb(copy)
    return cache


def _kept(reply: Reply) -> bool:
    return not isinstance(reply, Failure) or reply.kind in KEPT_FAILURES


def encoded(reply: Reply) -> str:
    return json.dumps([type(reply).__name__, asdict(reply)])


def decoded(text: str) -> Reply:
    name, values = json.loads(text)
    kind = KINDS[name]
    usage = Usage(**values.pop("usage"))
    plain = {f.name: _tuple(values[f.name]) for f in fields(kind) if f.name in values}
    reply: Reply = kind(**plain, usage=usage)
    return reply


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
