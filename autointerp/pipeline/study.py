"""All stages from one YAML: train, collect, explain, score, for every dictionary, draw, explainer, judge and corpus.

Every cell is resumable, and finished ones are left alone; the books (replies, budget, spending) are the study's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

import sae as sae_package
from autointerp.config import RunSettings
from autointerp.engine.ledger import adopt
from autointerp.errors import NoLatents, UserError
from autointerp.files import write_json
from autointerp.pipeline.cells import Cell, Dictionary, cells_of
from autointerp.pipeline.collection import collect
from autointerp.pipeline.dictionary import NEURONS_TOPK, RANDOM_MODEL, RANDOM_SAE, is_neurons
from autointerp.pipeline.explain import STAGE, explain
from autointerp.pipeline.explain import prepare as prepare_explain
from autointerp.pipeline.lens import write_lens
from autointerp.pipeline.metrics import write_sae_metrics
from autointerp.pipeline.models import Models
from autointerp.pipeline.names import run_name
from autointerp.pipeline.run import Run
from autointerp.pipeline.score import config_of, score
from autointerp.pipeline.score import prepare as prepare_score
from autointerp.pipeline.session import Session
from autointerp.pipeline.training_run import subject_to_train_on, train_run
from autointerp.pipeline.unite import unite
from autointerp.progress import Reporter
from autointerp.registries import EXPLAINERS, SCORERS, member
from autointerp.store import layout
from autointerp.tables.load import load_explanations, load_table
from prompts.requests import fingerprint

FINISHED = "finished.json"


class Study:
    """One folder with the cells of a study, and what they share while this process runs."""

    def __init__(self, settings: RunSettings, out: Path, reporter: Reporter) -> None:
        self.settings, self.out, self.reporter = settings, out, reporter
        self.run = Run(out, settings)
        self.models = Models()
        self._trained: list[pd.DataFrame] = []

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

    def __call__(self, *, fresh: bool = False) -> list[Cell]:
        """Run or resume everything; the tables of all cells are united in the study's folder.

        Raises:
            UserError: bad input, found before the first cell where it can be.
        """
        self.check()
        self.run.open(fresh=fresh, own_sae=True)
        cells = cells_of(self.settings, self.dictionaries(), self.out)
        try:
            self._collect([cell for cell in cells if cell.leads])
            for number, cell in enumerate(cells, 1):
                self._run(cell, f"[{number}/{len(cells)}] {cell.name}")
        finally:
            # What is there when a budget or a lost server ends a study is a result, too.
            if cells[0].folder != self.out:
                unite(self.run, [cell for cell in cells if (cell.folder / "latents.parquet").is_file()], self._trained)
            self.run.close()
        return cells

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

    def dictionaries(self) -> list[Dictionary]:
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
        trained = self._train(settings, self.run) if settings.train.hookpoints else []
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
        trained = train_run(run, subject, self.reporter)
        self._trained.append(load_table(run.folder, "sae_metrics"))
        return [(one.case.name, one.case.hookpoint, one.folder) for one in trained]

    def _session(self, cell: Cell) -> Session:
        return Session(Run(cell.folder, cell.settings, study=self.out), self.reporter, models=self.models)

    def _collect(self, cells: Sequence[Cell]) -> None:
        """Every store that is missing, in one pass of the subject model for those of one model and text."""
        passes: dict[tuple[object, ...], list[Session]] = defaultdict(list)
        for cell in cells:
            session = self._session(cell)
            if not layout.finished(session.store_folder):
                session.check()
                passes[(*session.subject_key, session.dataset, session.corpus_seed)].append(session)
        for sessions in passes.values():
            collect(sessions)

    def _run(self, cell: Cell, place: str) -> None:
        """Explain and score one cell; one that is finished is left alone."""
        settings = self._with_latents(cell)
        done = fingerprint(settings.model_dump(mode="json"))
        path = cell.folder / FINISHED
        if path.is_file() and json.loads(path.read_text()) == done:
            return
        self.reporter.say(place)
        session = self._session(replace(cell, settings=settings))
        try:
            session.check()
            prepared = prepare_explain(session)
            session.run.open()
            if cell.explanations_of is not None:
                adopt(STAGE, cell.explanations_of, cell.folder)
            explain(session, prepared)
            score(session, prepare_score(session))
        except NoLatents as error:
            # That none is live is a finding about this dictionary, and the others are still to be studied.
            self.reporter.say(f"{cell.name}: {error}")
        finally:
            session.run.merge()
            session.run.close()
        if cell.leads:
            write_sae_metrics(session)
            write_lens(session)
        write_json(path, done)

    def _with_latents(self, cell: Cell) -> RunSettings:
        """The latents of the first cell of this dictionary, by name: which ones are live depends on the draw."""
        if cell.latents_of is None or not (cell.latents_of / "explanations.parquet").is_file():
            return cell.settings
        latents = sorted(set(load_explanations(cell.latents_of)["latent"].dropna().astype(int)))
        named = {"latents": ",".join(map(str, latents)), "limit": None}
        return cell.settings.model_copy(update=named) if latents else cell.settings


def _unique(name: str, earlier: Sequence[str]) -> str:
    """Two SAEs may lie in folders of one name."""
    return name if name not in earlier else f"{name}-{1 + sum(n.startswith(name) for n in earlier)}"


def _plain(hookpoint: str) -> str:
    return hookpoint.replace(":", "-")
