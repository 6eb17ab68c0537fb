"""What is done of a run and what is missing, from the files of its folder alone: no model and no queue is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from autointerp.config import RunSettings
from autointerp.jobs.states import DONE, State, divisions, mark, read_states
from autointerp.pipeline.cells import FINISHED, Cell, known_cells, none_live
from autointerp.pipeline.cells import STAGES as WORK
from autointerp.shards import Shard
from autointerp.store import layout

STAGES = (*WORK, "merge")
UNDIVIDED = frozenset({"train", "merge"})
ALL = "all"
"""Stage of a process that does them all."""


@dataclass(frozen=True, slots=True)
class Share:
    """Units finished of those that a share has; `of` is None where that is not known yet."""

    done: int
    of: int | None

    @property
    def complete(self) -> bool:
        return self.done == self.of

    def __add__(self, other: Share) -> Share:
        known = self.of is not None and other.of is not None
        return Share(self.done + other.done, (self.of or 0) + (other.of or 0) if known else None)


NOTHING, UNKNOWN = Share(0, 0), Share(0, None)


class Progress:
    """One look at a run folder: what was read is kept, so make another for another look.

    With `to_show` a stage that no process has ended yet counts, too: good enough to show how far it is, but what is
    selected may still be that of earlier settings.
    """

    def __init__(self, folder: Path, settings: RunSettings, *, to_show: bool = False) -> None:
        self.folder, self.settings, self.to_show = folder, settings, to_show
        self.of = mark(settings)
        self.states = read_states(folder)
        self.done_keys, self.selected = cache(_done_keys), cache(_selected)

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that this run has."""
        return STAGES if self.settings.train.hookpoints else STAGES[1:]

    @cached_property
    def cells(self) -> list[Cell] | None:
        """None until its SAEs are known: the first process writes them down, after training if there is some."""
        return known_cells(self.settings, self.folder)

    def share(self, stage: str, shard: Shard) -> Share:
        return FINDERS[stage](self, shard)

    def incomplete(self, stage: str, count: int) -> list[int]:
        """Shares of this many that are not finished."""
        return [i for i in range(count) if not self.share(stage, Shard(i, count)).complete]

    def state(self, stage: str, shard: Shard) -> State | None:
        here = (stage, shard.index, shard.count)
        return next((one for one in self.states if (one.stage, one.index, one.count) == here), None)

    def says_done(self, stage: str, shard: Shard) -> bool:
        """The process that did it, with these settings, says so."""
        state = self.state(stage, shard)
        return state is not None and state.state == DONE and state.of == self.of

    def current(self, stage: str) -> bool:
        """What is selected in this stage was selected with these settings: a share of it was done with them."""
        mine = [one for one in self.states if one.stage in (stage, ALL)]
        return any(one.of == self.of and (one.state == DONE or self.to_show) for one in mine)

    def begun_division(self) -> int | None:
        """Into how many shares the collecting is divided; that cannot change once it has begun."""
        for store in self.stores():
            shards = layout.all_shard_folders(store)
            if shards != [store]:
                return len(shards)
            if (store / layout.MANIFEST).is_file() or (store / layout.IDENTITY).is_file():
                return 1
        return None

    def division(self, stage: str) -> int | None:
        """Into how many shares a stage was divided last, as far as the folder tells."""
        if stage in UNDIVIDED:
            return 1
        if stage == "collect" and (begun := self.begun_division()):
            return begun
        known = divisions(self.states, stage)
        return max(known, key=lambda count: (known[count], count)) if known else None

    def stores(self) -> Iterator[Path]:
        """Those of this run's own folder that were begun."""
        folders = {Path(str(cell.settings.stores)) for cell in self.cells or ()}
        for folder in sorted(folders) if not self.settings.stores else ():
            yield from (path for path in (sorted(folder.iterdir()) if folder.is_dir() else ()) if path.is_dir())


def _trained(progress: Progress, shard: Shard) -> Share:
    return Share(int(progress.cells is not None), 1)


def _collected(progress: Progress, shard: Shard) -> Share:
    """Stores. Their names need the SAEs, which are not loaded here: they are counted."""
    if progress.cells is None:
        return UNKNOWN
    wanted = len({(c.settings.stores, c.dictionary.name) for c in progress.cells if c.leads})
    stores = list(progress.stores())
    there = [s for s in stores if layout.finished(s) or (layout.shard_folder(s, shard) / layout.MANIFEST).is_file()]
    if len(there) == len(stores) and progress.says_done("collect", shard):
        # Two SAEs may have one store, and a folder of stores that runs share holds others' too.
        return Share(wanted, wanted)
    return Share(min(len(there), wanted), wanted)


def _explained(progress: Progress, shard: Shard) -> Share:
    return _worked(progress, "explain", shard, lambda cell: ("explain",))


def _scored(progress: Progress, shard: Shard) -> Share:
    return _worked(progress, "score", shard, lambda cell: [f"score-{name}" for name in cell.settings.score.methods])


def _worked(progress: Progress, stage: str, shard: Shard, ledgers: Callable[[Cell], Iterable[str]]) -> Share:
    """Units of all cells that are selected, and those of them that have a marker."""
    if progress.cells is None or not progress.current(stage):
        return UNKNOWN
    total = NOTHING
    for cell in progress.cells:
        if none_live(cell):
            continue
        for name in ledgers(cell):
            keys = progress.selected(cell.folder, name)
            if keys is None:
                total += UNKNOWN
                continue
            mine = [keys[at] for at in shard.of(len(keys))]
            total += Share(sum(key in progress.done_keys(cell.folder, name) for key in mine), len(mine))
    return total


def _merged(progress: Progress, shard: Shard) -> Share:
    state = progress.state("merge", shard) or progress.state(ALL, shard)
    if progress.cells is None or state is None or state.state != DONE:
        return Share(0, 1)
    return Share(int(all((cell.folder / FINISHED).is_file() for cell in progress.cells)), 1)


FINDERS: dict[str, Callable[[Progress, Shard], Share]] = {
    "train": _trained, "collect": _collected, "explain": _explained, "score": _scored, "merge": _merged,
}  # fmt: skip


def _selected(folder: Path, stage: str) -> list[str] | None:
    path = folder / "selected" / f"{stage}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _done_keys(folder: Path, stage: str) -> frozenset[str]:
    """Not the ledger's own reader, which makes the folder."""
    markers = sorted((folder / "done" / stage).glob("*.json"))
    return frozenset(key for path in markers for key in json.loads(path.read_text(encoding="utf-8"))["keys"])
