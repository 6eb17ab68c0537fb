"""All stages from one YAML: train, collect, explain, score, for every dictionary, draw, explainer, judge and corpus.

Every cell is resumable, and finished ones are left alone; the books (replies, budget, spending) are the study's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import sae as sae_package
from autointerp.config import RunSettings
from autointerp.engine.ledger import adopt
from autointerp.errors import NoLatents, UserError
from autointerp.files import write_json
from autointerp.pipeline.cells import (
    CHOSEN,
    DICTIONARIES,
    FINISHED,
    STAGES,
    Cell,
    Dictionary,
    cells_of,
    dictionaries_mark,
    known_cells,
    none_live,
)
from autointerp.pipeline.collection import collect
from autointerp.pipeline.dictionary import NEURONS_TOPK, RANDOM_MODEL, RANDOM_SAE, is_neurons
from autointerp.pipeline.explain import STAGE, explain
from autointerp.pipeline.explain import prepare as prepare_explain
from autointerp.pipeline.lens import write_lens
from autointerp.pipeline.metrics import write_sae_metrics
from autointerp.pipeline.models import Models
from autointerp.pipeline.names import run_name
from autointerp.pipeline.run import Run
from autointerp.pipeline.score import config_of, score, stage_of
from autointerp.pipeline.score import prepare as prepare_score
from autointerp.pipeline.session import Session
from autointerp.pipeline.shares import settle, settled
from autointerp.pipeline.training_run import subject_to_train_on, train_run
from autointerp.pipeline.unite import unite
from autointerp.progress import Reporter
from autointerp.registries import EXPLAINERS, SCORERS, member
from autointerp.shards import WHOLE, Shard
from autointerp.store import layout
from autointerp.tables.load import load_table
from prompts.requests import fingerprint

TRAINED = "trained"


class Study:
    """One folder with the cells of a study, and what they share while this process runs."""

    def __init__(self, settings: RunSettings, out: Path, reporter: Reporter) -> None:
        self.settings, self.out, self.reporter = settings, out, reporter
        self.run = Run(out, settings)
        self.models = Models()

    def check(self) -> None:
        """Find out what can be found out before anything is written.

        Raises:
            UserError: an unknown name, or nothing to study.
        """
        settings, study = self.settings, self.settings.study
        if not (settings.train.hookpoints or study.saes or settings.sae):
            raise UserError(
                "nothing to run: name SAEs (sae, study.saes), or hookpoints to train at (train.hookpoints), in --config"
            )
        for name in study.explainers:
            member(EXPLAINERS, name)
        for name in settings.score.methods:
            config_of(member(SCORERS, name), settings.score)
        if unknown := set(study.once) - set(settings.score.methods):
            raise UserError(f"study.once names {', '.join(sorted(unknown))}, which score.methods does not")
        if "neurons" in study.controls and settings.subject.model is None:
            raise UserError("the control 'neurons' needs subject.model: neurons have no metadata that names it")

    def __call__(self, *, fresh: bool = False, stages: Sequence[str] = STAGES, shard: Shard = WHOLE) -> list[Cell]:
        """Run or resume these stages; a whole one also unites the tables of all cells in the study's folder.

        Raises:
            UserError: bad input, found before the first cell where it can be.
        """
        self.check()
        if fresh and not shard.whole:
            raise UserError("--fresh would delete what the other shards do; delete the folder, or name another --out")
        Run(self.out, self.settings, shard=shard).open(fresh=fresh, own_sae=True)
        cells = self.cells(train="train" in stages)
        try:
            if "collect" in stages:
                self._collect([cell for cell in cells if cell.leads], shard)
            for number, cell in enumerate(cells, 1):
                self._run(cell, f"[{number}/{len(cells)}] {cell.name}", stages, shard)
        finally:
            # What is there when a budget or a lost server ends a study is a result, too.
            if shard.whole:
                self.unite(cells)
        return cells

    def cells(self, *, train: bool = False) -> list[Cell]:
        """The study's cells, from what was written down when its dictionaries were made.

        Raises:
            UserError: they were not made yet, and `train` does not say to make them now.
        """
        found = known_cells(self.settings, self.out)
        if found is not None:
            return found
        if self.settings.train.hookpoints and not train:
            raise UserError(f"the SAEs of '{self.out}' are not trained yet: run the stage `train` first")
        made = self._make_dictionaries()
        known = {"of": dictionaries_mark(self.settings), "dictionaries": [asdict(one) for one in made]}
        write_json(self.out / DICTIONARIES, known)
        return cells_of(self.settings, made, self.out)

    def merge(self, *, partial: bool = False) -> list[Cell]:
        """Final tables of what shards have done; finished cells are marked.

        Raises:
            UserError: units are missing, and `partial` does not say that they may be.
        """
        cells = self.cells()
        missing = {cell.name: n for cell in cells if (n := Run(cell.folder, cell.settings).unfinished())}
        if missing and not partial:
            first = ", ".join(f"{n} in {name}" for name, n in list(missing.items())[:3])
            raise UserError(
                f"{sum(missing.values())} units of {len(missing)} of {len(cells)} cells are not finished ({first}): "
                "run the missing shards, or merge what is there with --partial"
            )
        for cell in cells:
            self._close(cell, self._settings_of(cell))
        self.unite(cells)
        return cells

    def unite(self, cells: Sequence[Cell]) -> None:
        if cells and cells[0].folder != self.out:
            there = [cell for cell in cells if (cell.folder / "latents.parquet").is_file()]
            trained = [self.out / TRAINED, self.out / RANDOM_MODEL]
            figures = [load_table(path, "sae_metrics") for path in trained if (path / "sae_metrics.parquet").is_file()]
            unite(self.run, there, figures)
        self.run.close()

    def outline(self) -> list[str]:
        """What would be run, without training or loading a model."""
        settings, study = self.settings, self.settings.study
        train = settings.train
        sizes = train.widths or train.expansions
        n_trained = len(train.architectures) * len(train.hookpoints) * len(sizes) * len(train.k) * len(train.seeds)
        crossed = {"draw": study.draws, "explainer": len(study.explainers) or 1, "judge": len(study.judges) or 1}
        each = " x ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in crossed.items())
        return [
            f"train:    {n_trained if train.hookpoints else 0} SAEs ({', '.join(train.architectures)}; at most)",
            f"named:    {', '.join([s for s in (settings.sae, *study.saes) if s]) or 'none'}",
            f"controls: {', '.join(study.controls) or 'none'}, at each hookpoint",
            f"each:     {each} x {', '.join(study.corpora) or settings.data.dataset or 'its own text'}",
            f"scorers:  {', '.join(settings.score.methods)}"
            + (f" ({', '.join(study.once)}: first draw only)" if study.once else ""),
        ]

    def _make_dictionaries(self) -> list[Dictionary]:
        """Those named, those trained (now, where they are not yet), and the controls at their hookpoints."""
        settings, study = self.settings, self.settings.study
        named = [spec for spec in (settings.sae, *study.saes) if spec is not None]
        found: list[Dictionary] = []
        for spec in dict.fromkeys(named):
            found.append(Dictionary(_unique(run_name(spec), [one.name for one in found]), spec))
        by_hookpoint: dict[str, str] = {}
        for spec in named:
            if not is_neurons(spec):
                place = settings.subject.hookpoint or sae_package.load(spec).metadata.hookpoint
                by_hookpoint.setdefault(str(place), spec)
        run = Run(self.out / TRAINED, settings, study=self.out)
        trained = self._train(settings, run) if settings.train.hookpoints else []
        found += [Dictionary(name, str(folder)) for name, _, folder in trained]
        for _, hookpoint, folder in trained:
            by_hookpoint.setdefault(hookpoint, str(folder))
        return found + self._controls(by_hookpoint)

    def _controls(self, by_hookpoint: dict[str, str]) -> list[Dictionary]:
        settings, study = self.settings, self.settings.study
        found = []
        if RANDOM_SAE in study.controls:
            found += [Dictionary(f"{RANDOM_SAE}-{_plain(h)}", spec, RANDOM_SAE) for h, spec in by_hookpoint.items()]
        if RANDOM_MODEL in study.controls and settings.train.hookpoints:
            train = settings.train
            first = {
                "architectures": train.architectures[:1], "widths": train.widths[:1], "k": train.k[:1],
                "expansions": train.expansions[:1], "seeds": train.seeds[:1],
                "options": {n: o for n, o in train.options.items() if n == train.architectures[0]},
            }  # fmt: skip
            own = settings.model_copy(update={"null": RANDOM_MODEL, "train": train.model_copy(update=first)})
            trained = self._train(own, Run(self.out / RANDOM_MODEL, own, study=self.out))
            found += [Dictionary(f"{RANDOM_MODEL}-{_plain(h)}", str(folder)) for _, h, folder in trained]
        elif RANDOM_MODEL in study.controls:
            found += [Dictionary(f"{RANDOM_MODEL}-{_plain(h)}", s, RANDOM_MODEL) for h, s in by_hookpoint.items()]
        if "neurons" in study.controls:
            spec = f"neurons:{study.neurons}"
            found += [Dictionary(f"{NEURONS_TOPK}-{_plain(h)}", spec, hookpoint=h) for h in by_hookpoint]
        return found

    def _train(self, settings: RunSettings, run: Run) -> list[tuple[str, str, Path]]:
        """Name, hookpoint and folder of each trained dictionary; those that are finished are not trained again."""
        subject = subject_to_train_on(settings, self.reporter, models=self.models)
        return [(one.case.name, one.case.hookpoint, one.folder) for one in train_run(run, subject, self.reporter)]

    def _session(self, cell: Cell, settings: RunSettings | None = None, shard: Shard = WHOLE) -> Session:
        run = Run(cell.folder, settings or cell.settings, study=self.out, shard=shard)
        return Session(run, self.reporter, models=self.models)

    def _collect(self, cells: Sequence[Cell], shard: Shard) -> None:
        """Every store that is missing, in one pass of the subject model for those of one model and text."""
        passes: dict[tuple[object, ...], list[Session]] = defaultdict(list)
        for cell in cells:
            session = self._session(cell)
            if not layout.finished(session.store_folder):
                session.check()
                passes[(*session.subject_key, session.dataset, session.corpus_seed)].append(session)
        for sessions in passes.values():
            collect(sessions, shard)

    def _run(self, cell: Cell, place: str, stages: Sequence[str], shard: Shard) -> None:
        """Explain and score one cell, or this shard of it; one that is finished is left alone."""
        settings = self._settings_of(cell)
        if _finished(cell, settings) or not {"explain", "score"} & set(stages):
            return
        self.reporter.say(place)
        if "explain" not in stages and none_live(cell):
            self.reporter.say(f"{cell.name}: no latent was explained, since none is live")
            return
        session = self._session(cell, settings, shard)
        wanted, of = [stage for stage in (STAGE, "score") if stage in stages], _mark(settings)
        # What another cell explains may have changed, which nothing here would show.
        known = not shard.whole and cell.explanations_of is None
        if known and all(settled(session.run, stage, of) for stage in wanted):
            self.reporter.say(f"{', '.join(wanted)}: shard {shard} is done already")
            return
        try:
            session.check()
            session.run.open()
            if "explain" in stages:
                if cell.explanations_of is not None:
                    adopt(STAGE, cell.explanations_of, cell.folder)
                explain(session, prepare_explain(session))
            if "score" in stages:
                score(session, prepare_score(session))
            for stage in wanted if not shard.whole else ():
                settle(session.run, stage, of)
        except NoLatents as error:
            # That none is live is a finding about this dictionary, and the others are still to be studied.
            self.reporter.say(f"{cell.name}: {error}")
        finally:
            if shard.whole:
                session.run.merge()
            session.run.close()
        if shard.whole and "score" in stages:
            self._close(cell, settings, session)

    def _close(self, cell: Cell, settings: RunSettings, session: Session | None = None) -> None:
        """What is made once all of a cell is there; a `session` that is given has its tables already."""
        if _finished(cell, settings):
            return
        if session is None:
            session = self._session(cell, settings)
            session.run.merge()
            session.run.close()
        if cell.leads:
            write_sae_metrics(session)
            write_lens(session)
        wanted = {STAGE, *(stage_of(name) for name in settings.score.methods)}
        if none_live(cell) or (wanted <= set(session.run.stages) and not session.run.unfinished()):
            write_json(cell.folder / FINISHED, _mark(settings))

    def _settings_of(self, cell: Cell) -> RunSettings:
        """With the latents of the first cell of this dictionary, by name: which ones are live depends on the draw."""
        if cell.latents_of is None or not (cell.latents_of / CHOSEN).is_file():
            return cell.settings
        latents = json.loads((cell.latents_of / CHOSEN).read_text())
        return cell.settings.model_copy(update={"latents": ",".join(map(str, latents)), "limit": None})


def _finished(cell: Cell, settings: RunSettings) -> bool:
    path = cell.folder / FINISHED
    return path.is_file() and json.loads(path.read_text()) == _mark(settings)


def _mark(settings: RunSettings) -> str:
    """What a finished cell is known by; where it lies is no part of it."""
    return fingerprint(settings.model_dump(mode="json", exclude={"out", "stores", "slurm"}))


def _unique(name: str, earlier: Sequence[str]) -> str:
    """Two SAEs may lie in folders of one name."""
    return name if name not in earlier else f"{name}-{1 + sum(n.startswith(name) for n in earlier)}"


def _plain(hookpoint: str) -> str:
    return hookpoint.replace(":", "-")
