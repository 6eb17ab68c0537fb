"""What the stages of one command share: the subject model, the SAE, the store; each loaded when first needed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sae as sae_package
from autointerp.collect.encode import collect_store
from autointerp.collect.sites import width_at
from autointerp.collect.tokenise import blocks_of, tokenise
from autointerp.config import DataSettings, RunSettings
from autointerp.engine.ledger import Ledger, work_key
from autointerp.errors import UserError
from autointerp.files import sha256_of
from autointerp.pipeline.names import sae_id
from autointerp.pipeline.run import Run
from autointerp.progress import Reporter
from autointerp.sampling.sampler import Sampler
from autointerp.store import layout
from autointerp.store.reader import LatentStore
from autointerp.subject.hookpoints import find, layer_of
from autointerp.subject.load import SubjectModel, load_subject
from prompts.requests import fingerprint
from sae.base import SparseAutoencoder


@dataclass
class Session:
    run: Run
    reporter: Reporter

    @property
    def settings(self) -> RunSettings:
        return self.run.settings

    def check(self) -> None:
        """Raise what the run would stumble over first, before anything is written.

        Raises:
            UserError: the SAE, the model, the hookpoint or the text is not there or does not fit.
        """
        find(self.subject.model, self.hookpoint)
        width = width_at(self.subject, self.hookpoint)
        if width != self.sae.d_in:
            raise UserError(
                f"the SAE reads activations of width {self.sae.d_in}, but '{self.hookpoint}' of "
                f"{self.subject.label} has {width}: wrong --model, --hookpoint or --sae"
            )
        if not (self.store_folder / layout.MANIFEST).is_file():
            context = self.data.context_length
            blocks_of(self.subject, self.data, seed=self.corpus_seed, skip_documents=0, n_tokens=context)

    @cached_property
    def sae(self) -> SparseAutoencoder:
        path = self.settings.sae
        if path is None:
            raise UserError("no SAE: name its folder with --sae (`autointerp demo` trains a small one)")
        try:
            return sae_package.load(path)
        except sae_package.SAEError as error:
            raise UserError(f"{error}; `autointerp demo` trains one to try things with") from error

    @cached_property
    def sae_sha(self) -> str:
        return sae_package.content_sha(self.sae)

    @cached_property
    def hookpoint(self) -> str:
        name = self.settings.subject.hookpoint or self.sae.metadata.hookpoint
        if name is None:
            raise UserError("the SAE's metadata names no hookpoint: give one with --hookpoint, e.g. layers.9")
        return name

    @cached_property
    def sae_id(self) -> str:
        return sae_id(self.sae, self.hookpoint)

    @cached_property
    def subject(self) -> SubjectModel:
        name = self.settings.subject.model or self.sae.metadata.model
        if name is None:
            raise UserError("the SAE's metadata names no subject model: give one with --model (a folder or a hub id)")
        self.reporter.say(f"loading {name}")
        return load_subject(name, device=self.settings.subject.device, dtype=self.settings.subject.dtype)

    @cached_property
    def skip_documents(self) -> int:
        data, metadata = self.settings.data, self.sae.metadata
        if data.skip_documents is not None:
            return data.skip_documents
        trained = metadata.extra.get("n_documents", 0) if metadata.dataset == self.dataset else 0
        return int(trained)

    @property
    def corpus_seed(self) -> int:
        """Seed of the documents' order: the SAE's own where it was trained on them, so that those can be left out."""
        metadata = self.sae.metadata
        seed = metadata.extra.get("corpus_seed", metadata.seed)
        if isinstance(seed, int) and metadata.dataset == self.dataset:
            return seed
        return self.settings.seed

    @cached_property
    def dataset(self) -> str:
        name = self.settings.data.dataset or self.sae.metadata.dataset
        if name is None:
            raise UserError("the SAE's metadata names no data set: give text with --dataset")
        return name

    @property
    def data(self) -> DataSettings:
        """The data settings with the data set that is used."""
        return self.settings.data.model_copy(update={"dataset": self.dataset})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the store is of. Two stores that share it are interchangeable."""
        data = self.settings.data
        return {
            "model": self.subject.label,
            "model_sha": self.subject.fingerprint,
            "dtype": self.settings.subject.dtype,
            "sae_sha": self.sae_sha,
            "hookpoint": self.hookpoint,
            "dataset": self.dataset,
            "dataset_sha": _dataset_sha(self.dataset),
            "text_column": data.text_column,
            "mode": data.mode,
            "corpus_seed": self.corpus_seed,
            "tokens": data.tokens,
            "context_length": data.context_length,
            "skip_first": data.skip_first,
            "skip_documents": self.skip_documents,
        }

    @property
    def store_folder(self) -> Path:
        return self.run.folder / "store" / self.sae_id

    @cached_property
    def store(self) -> LatentStore:
        """The run's store of this SAE, collected first when there is none."""
        folder = self.store_folder
        if (folder / layout.MANIFEST).is_file():
            found = layout.read_manifest(folder)["identity"]
            apart = layout.differences(self.identity, found)
            if apart:
                raise UserError(
                    f"'{folder}' was collected with other settings ({'; '.join(apart)}); use --fresh or another --out"
                )
            return LatentStore.open(folder)
        self._collect(folder)
        return LatentStore.open(folder)

    def _collect(self, folder: Path) -> None:
        find(self.subject.model, self.hookpoint)
        if folder.exists():
            self.reporter.say(f"resuming the collection of activations in {folder}")
        else:
            self.reporter.say(f"no latent store for this SAE yet: collecting activations of {self.dataset} first")
        blocks = tokenise(self.subject, self.data, folder, seed=self.corpus_seed, skip_documents=self.skip_documents)

        began = time.perf_counter()
        with self.reporter.stage("collect", blocks.n_counted, "tokens") as stage:
            collect_store(
                self.subject, self.sae, blocks, self.hookpoint, folder, self.identity,
                on_tokens=lambda done, _: stage.update(done),
            )  # fmt: skip
        self.book("collect", self.subject.label, blocks.n_counted, time.perf_counter() - began)

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self.store, self.subject, self.settings.sampling, self.settings.seed)

    @cached_property
    def sampling_sha(self) -> str:
        """Everything that decides which windows a latent gets."""
        return fingerprint([self.identity, self.settings.sampling.model_dump(), self.settings.seed])

    @property
    def about_sae(self) -> dict[str, Any]:
        """Columns that say what was scored."""
        return {
            "run_id": self.run.run_id,
            "model": self.subject.label,
            "sae_id": self.sae_id,
            "sae_sha": self.sae_sha,
            "arch": self.sae.architecture,
            "hookpoint": self.hookpoint,
            "layer": layer_of(self.hookpoint),
            "width": self.sae.n_latents,
            "l0": float(self.store.indptr[-1]) / max(1, self.store.n_tokens),
        }

    def book(self, stage: str, model: str, tokens: int, seconds: float) -> None:
        """Note the tokens and seconds of a stage that asks no client anything."""
        ledger, key = Ledger(self.run.folder, stage), work_key(stage, model=model, tokens=tokens)
        row = {
            "run_id": self.run.run_id, "stage": stage, "model": model, "calls": 0, "cached_calls": 0,
            "prompt_tokens": tokens, "completion_tokens": 0, "price": 0.0, "seconds": seconds,
        }  # fmt: skip
        ledger.record(key, {"usage": [row]})
        ledger.flush()
        self.run.select(stage, [key])


def _dataset_sha(name: str) -> str | None:
    """sha256 of a file; data sets that are no single file are known by their name."""
    path = Path(name).expanduser()
    if not path.is_file():
        return None
    return sha256_of(path)[:16]
