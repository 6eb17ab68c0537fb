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
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from autointerp.errors import Damaged, DiskFull, UserError
from autointerp.shards import WHOLE, Shard
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
    """`path` None keeps everything in memory. With `again`, failures that are kept count as not there. `earlier` is a
    cache that nobody is writing: what it holds is found here too.

    Raises:
        BlockingIOError: another process has the file.
        Damaged: it is no such file.
    """

    def __init__(self, path: Path | None = None, *, again: bool = False, earlier: Path | None = None) -> None:
        self.path, self.again, self.earlier = path, again, earlier
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with _naming(path):
            self._db = sqlite3.connect(path or ":memory:", timeout=0.2, isolation_level=None, check_same_thread=False)
        try:
            with _naming(path):
                # Alone in the file, SQLite needs no shared memory, which network file systems do not have.
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.execute("BEGIN EXCLUSIVE")
                self._db.execute("COMMIT")
                self._db.executescript(SCHEMA)
        except BaseException:
            self._db.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, whatever goes wrong: the next one must not find this one open."""
        within = self._db.in_transaction
        if within:
            yield  # part of a larger one
            return
        with _naming(self.path):
            self._db.execute("BEGIN")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str) -> Iterator[list[Any]]:
        """A thousand rows at a time."""
        with _naming(self.path):
            cursor = self._db.execute(query)
        some: list[Any] = [None]
        while some:
            with _naming(self.path):
                some = cursor.fetchmany(1000)
            yield some

    def __len__(self) -> int:
        with _naming(self.path):
            return int(self._db.execute("SELECT count(*) FROM replies").fetchone()[0])

    def get(self, key: str) -> Reply | None:
        query = "SELECT reply FROM replies WHERE key = ?"
        with _naming(self.path):
            row = self._db.execute(query, (key,)).fetchone()
        if row is None and self.earlier is not None:
            with _reading(self.earlier) as theirs:
                row = theirs.execute(query, (key,)).fetchone()
        try:
            reply = decoded(row[0]) if row else None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _damaged(self.path, error) from error
        return None if self.again and isinstance(reply, Failure) else reply

    def saved(self, stage: str, model: str, usage: Usage, price: float | None) -> None:
        """Book an answer that was there already, and what it would have cost."""
        with _naming(self.path):
            tokens = usage.prompt_tokens + usage.completion_tokens
            self._add(stage, model, cached_calls=1, saved_tokens=tokens, saved_price=price)

    def record(
        self, stage: str, model: str, cost: Cost, held: tuple[str, float] | None = None,
        key: str | None = None, reply: Reply | None = None,
    ) -> None:  # fmt: skip
        """Book one attempt, and keep its reply under `key` if it is one to keep; `held` is what the budget still has
        reserved, which counts as spent if this process is killed."""
        usage = cost.usage
        with self.transaction():
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

    def hold(self, unit: str, amount: float) -> None:
        """Write down what the budget has reserved now: it counts as spent if this process is killed."""
        with _naming(self.path):
            self._db.execute("INSERT OR REPLACE INTO held VALUES (?, ?)", (unit, amount))

    def book_lost(self) -> None:
        """Count what killed processes had in flight as spent, at worst."""
        lost = {unit: amount for some in self._rows("SELECT unit, amount FROM held") for unit, amount in some if amount}
        if not lost:
            return
        with self.transaction():
            # What tokens of a budget in tokens would have cost is unknown.
            self._add(LOST, "", unsure_tokens=round(lost.get("tok", 0)), price=lost.get("usd"))
            self._db.execute("DELETE FROM held")

    def spent(self) -> list[dict[str, Any]]:
        """One row per stage and model."""
        names = ("stage", "model", *COUNTED)
        some = self._rows(f"SELECT {', '.join(names)} FROM spent ORDER BY stage, model")  # noqa: S608  (our own names)
        return [dict(zip(names, row, strict=True)) for rows in some for row in rows]

    def forget_replies(self, stage: str | None = None) -> None:
        """`--fresh`: ask everything, or one stage, anew. What was spent stays in the books."""
        with _naming(self.path):
            self._db.execute("DELETE FROM replies WHERE ? IS NULL OR stage = ?", (stage, stage))

    def absorb(self, other: Path) -> bool:
        """Take over what another cache holds, and delete it; False where another process is writing it."""
        try:
            theirs = ReplyCache(other)
        except BlockingIOError:
            return False
        try:
            with self.transaction():
                for some in theirs._rows("SELECT key, stage, model, reply, at FROM replies"):
                    self._db.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", some)
                for row in theirs.spent():
                    self._add(row.pop("stage"), row.pop("model"), **row)
                for some in theirs._rows("SELECT unit, amount FROM held"):
                    self._db.executemany(
                        "INSERT INTO held VALUES (?, ?) ON CONFLICT (unit) DO UPDATE SET amount = amount + "
                        "excluded.amount", some,
                    )  # fmt: skip
        finally:
            theirs.close()
        other.unlink()
        return True

    def _add(self, stage: str, model: str, **amounts: float | None) -> None:
        """Add to the books. A price that is unknown (None) makes the sum unknown."""
        self._db.execute(ADD, (stage, model, *(amounts.get(name, 0) for name in COUNTED)))

    def close(self) -> None:
        self._db.close()


def open_cache(folder: Path, shard: Shard = WHOLE, *, again: bool = False) -> ReplyCache:
    """The run's `replies.sqlite`, or another file beside it while other processes have that one.

    The first process takes over what finished ones have left. A shard has a file of its own by name, so that no lock
    of the file system has to be relied on, and reads what was united before it.
    """
    if not shard.whole:
        united = folder / REPLIES
        own = folder / f"replies-shard-{shard.label}.sqlite"
        return ReplyCache(own, again=again, earlier=united if united.is_file() else None)
    for n in range(1, MOST_PROCESSES):
        name = REPLIES if n == 1 else f"replies-{n}.sqlite"
        try:
            cache = ReplyCache(folder / name, again=again)
        except BlockingIOError:
            continue
        try:
            for path in sorted(folder.glob("replies-*.sqlite")) if n == 1 else []:
                cache.absorb(path)
        except BaseException:
            cache.close()
            raise
        return cache
    raise BlockingIOError(f"more than {MOST_PROCESSES} processes use '{folder}'")


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A finished cache, read without any lock."""
    with _naming(path), closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as theirs:
        yield theirs


def spent_in(path: Path) -> list[dict[str, Any]]:
    """What a cache that nobody is writing has booked; nothing where there is none."""
    if not path.is_file():
        return []
    names = ("stage", "model", *COUNTED)
    with _reading(path) as theirs:
        rows = theirs.execute(f"SELECT {', '.join(names)} FROM spent").fetchall()  # noqa: S608  (our own names)
    return [dict(zip(names, row, strict=True)) for row in rows]


def merge(sources: list[Path], into: Path) -> ReplyCache:
    """Unite reply caches in one file. Sources are left as they are.

    Raises:
        BlockingIOError: a process is writing one of them.
        UserError: one is missing, or damaged.
    """
    cache = ReplyCache(into)
    copy = into.with_name(f".{into.name}.merging")
    try:
        for source in sources:
            if not source.is_file():
                raise UserError(f"there is no reply cache '{source}'")
            copy.unlink(missing_ok=True)
            with _naming(source), closing(sqlite3.connect(source, timeout=0.2)) as theirs:
                # A backup would wait for ever for a process that is writing; a lock says so.
                theirs.execute("BEGIN")
                theirs.execute("SELECT count(*) FROM sqlite_master").fetchone()
                with closing(sqlite3.connect(copy)) as ours:
                    theirs.backup(ours)
            cache.absorb(copy)
    except BaseException:
        cache.close()
        raise
    finally:
        copy.unlink(missing_ok=True)
    return cache


@contextmanager
def _naming(path: Path | None) -> Iterator[None]:
    """Say which file it is that SQLite has a problem with, and what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        said = str(error)
        if "locked" in said:
            raise BlockingIOError(f"another process uses '{path}'") from error
        if "full" in said or "disk I/O" in said:
            raise DiskFull(
                f"no room to write '{path}': what was finished is kept; free some space and run the same command again"
            ) from error
        if "readonly" in said or "unable to open" in said:
            raise UserError(f"cannot write '{path}' ({error}): check who may write there") from error
        if "decode" in said or "no such column" in said or "values were supplied" in said:
            raise _damaged(path, error) from error
        raise
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path | None, error: Exception) -> Damaged:
    about = " ".join(str(error).split())
    return Damaged(
        f"'{path}' is damaged ({type(error).__name__}: {about}): remove it; the replies in it will be asked for again"
    )


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
