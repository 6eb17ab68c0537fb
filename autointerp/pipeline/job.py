"""A training job: what to train, on what, and where it goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from autointerp.collect.tokenise import PLACE
from autointerp.config import DataSettings, TrainSettings
from autointerp.errors import UserError
from autointerp.files import write_json
from autointerp.pipeline.grid import Case
from autointerp.store.layout import DOCUMENTS, TOKENS
from autointerp.subject.load import SubjectModel
from sae.checkpoint import difference

TRAINED = "trained.json"
MAY_CHANGE = {
    "architectures", "hookpoints", "expansions", "widths", "k", "seeds", "options",
    "cache", "checkpoint_every", "track",
}  # fmt: skip
"""Settings that say which dictionaries there are, which each case records, and those that change none."""


@dataclass(frozen=True, kw_only=True)
class Job:
    cases: Sequence[Case]
    settings: TrainSettings
    data: DataSettings
    seed: int
    saes: Path
    """Folder that receives one folder per dictionary, named as its case."""
    work: Path
    """Tokens, cached activations, states of streams."""

    def folder(self, case: Case) -> Path:
        return self.saes / case.name

    @property
    def own_cache(self) -> Path:
        """Cached activations of this run alone, where the settings name no other folder."""
        return self.work / "cache"

    @property
    def unfinished(self) -> list[Case]:
        return [case for case in self.cases if not (self.folder(case) / "sae.json").is_file()]


def agree(subject: SubjectModel, job: Job) -> None:
    """Write down what the job's dictionaries are trained with; others may join them, on the same terms.

    Raises:
        UserError: dictionaries of this folder were trained otherwise.
    """
    terms = {
        "model": subject.fingerprint,
        "seed": job.seed,
        "data": job.data.model_dump(),
        "train": job.settings.model_dump(exclude=MAY_CHANGE),
        "cases": {case.name: asdict(case) for case in job.cases},
    }
    wanted = json.loads(json.dumps(terms))
    path = job.work / TRAINED
    earlier = json.loads(path.read_text()) if path.is_file() else wanted
    if not any((job.saes / name).exists() for name in earlier["cases"]):
        if earlier != wanted:
            _forget(job)
        earlier = wanted
    # A dictionary that joins is no difference.
    wanted["cases"] = {**earlier["cases"], **wanted["cases"]}
    apart = difference({**earlier, "cases": {**wanted["cases"], **earlier["cases"]}}, wanted)
    if apart:
        raise UserError(
            f"'{job.saes}' holds dictionaries trained with other settings ({apart}); use another --out, or --fresh"
        )
    write_json(path, wanted)


def _forget(job: Job) -> None:
    """Nothing was trained on what lies here yet, and it belongs to other settings."""
    for name in (TOKENS, DOCUMENTS, PLACE):
        (job.work / name).unlink(missing_ok=True)
    shutil.rmtree(job.own_cache, ignore_errors=True)
