"""What the stages of one command share: the subject model, the SAE, the store; each loaded when first needed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import sae as sae_package
from autointerp.collect.sites import width_at
from autointerp.collect.tokenise import blocks_of
from autointerp.config import DataSettings, RunSettings
from autointerp.engine.ledger import Ledger, work_key
from autointerp.engine.replies import COUNTED
from autointerp.errors import UserError
from autointerp.files import own_name, sha256_of
from autointerp.pipeline.dictionary import control_of, is_neurons, load_dictionary, random_model_seed
from autointerp.pipeline.embeddings import KeptEmbeddings
from autointerp.pipeline.models import Models
from autointerp.pipeline.names import sae_id
from autointerp.pipeline.run import Run
from autointerp.progress import Reporter
from autointerp.sampling.sampler import VERSION as SAMPLING_VERSION
from autointerp.sampling.sampler import Sampler
from autointerp.seeds import derive
from autointerp.shards import WHOLE, Shard
from autointerp.store import layout
from autointerp.store.reader import LatentStore
from autointerp.subject.hookpoints import layer_of, resolve
from autointerp.subject.load import SubjectModel
from prompts.requests import fingerprint
from sae.base import SparseAutoencoder


@dataclass
class Session:
    run: Run
    reporter: Reporter
    sae_spec: str | None = None
    """The SAE, where it is not the one of the run's settings (several are collected at once)."""
    models: Models = field(default_factory=Models, repr=False)

    @property
    def settings(self) -> RunSettings:
        return self.run.settings

    def check(self) -> None:
        """Raise what the run would stumble over first, before anything is written.

        Raises:
            UserError: the SAE, the model, the hookpoint or the text is not there or does not fit.
        """
        width = width_at(self.subject, self.hookpoint)
        if width != self.sae.d_in:
            raise UserError(
                f"the SAE reads activations of width {self.sae.d_in}, but '{self.hookpoint}' of "
                f"{self.subject.label} has {width}: wrong --model, --hookpoint or --sae"
            )
        if not layout.finished(self.store_folder):
            context = self.data.context_length
            blocks_of(self.subject, self.data, seed=self.corpus_seed, skip_documents=0, n_tokens=context)

    @cached_property
    def sae(self) -> SparseAutoencoder:
        """On the subject model's device."""
        spec = self.sae_spec or self.settings.sae
        if spec is None:
            raise UserError("no SAE: name its folder with --sae (`autointerp demo` trains a small one)")
        return load_dictionary(spec, self.settings, lambda: self.subject).to(self.settings.subject.device)

    @cached_property
    def sae_sha(self) -> str:
        return sae_package.content_sha(self.sae)

    @cached_property
    def hookpoint(self) -> str:
        """In the subject model's own names, so that one place has one name."""
        recorded = self.sae.metadata.hookpoint
        # Where neurons are was found out from what the settings name.
        name = recorded if self.sae.architecture == "neurons" else self.settings.subject.hookpoint or recorded
        if name is None:
            raise UserError("the SAE's metadata names no hookpoint: give one with --hookpoint, e.g. layers.9")
        return resolve(self.subject.model, name)

    @cached_property
    def sae_id(self) -> str:
        return sae_id(self.sae, self.hookpoint)

    @property
    def subject_name(self) -> str:
        name = self.settings.subject.model or self.sae.metadata.model
        if name is None:
            raise UserError("the SAE's metadata names no subject model: give one with --model (a folder or a hub id)")
        return name

    @cached_property
    def subject(self) -> SubjectModel:
        how = self.settings.subject
        return self.models.subject(self.subject_name, how, self.random_seed, say=self.reporter.say)

    @property
    def random_seed(self) -> int | None:
        """Seed of a model with random weights: of the one the SAE was trained on, or the run's; None: a trained one."""
        # Neurons cannot be asked: they are known only once the model is.
        spec = self.sae_spec or self.settings.sae or ""
        recorded = None if is_neurons(spec) else self.sae.metadata.extra.get("random_model_seed")
        if isinstance(recorded, int):
            return recorded
        return random_model_seed(self.settings)

    @property
    def subject_key(self) -> tuple[str, int | None]:
        """Sessions with the same key can share one subject model."""
        return self.subject_name, self.random_seed

    @cached_property
    def reader(self) -> SubjectModel:
        """The trained model whose likelihoods are read; a random one has none that mean anything."""
        return self.subject if not self.subject.null else self.models.subject(self.subject.name, self.settings.subject)

    @property
    def control(self) -> str:
        """`none`, or which control this dictionary and this model are."""
        return control_of(self.sae, self.subject)

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
        """What a store has to be of. Two stores that share it are interchangeable."""
        data = self.settings.data
        return {
            "model": self.subject.label,
            "model_sha": self.subject.fingerprint,
            "dtype": self.settings.subject.dtype,
            "sae_sha": self.sae_sha,
            "hookpoint": self.hookpoint,
            "dataset": self.dataset,
            "dataset_sha": _dataset_sha(self.dataset),
            "split": data.split,
            "subset": data.subset,
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
        return (Path(self.settings.stores) if self.settings.stores else self.run.folder / "store") / self.sae_id

    @cached_property
    def store(self) -> LatentStore:
        """The run's store of this SAE, collected first when there is none; the first shard compares every file with
        its sha256."""
        if not layout.finished(self.store_folder):
            from autointerp.pipeline.collection import collect

            layout.shard_folders(self.store_folder)  # says which shards are missing, where some are there
            collect([self])
        # Each of many shards would read the whole store for it.
        store = LatentStore.open(self.store_folder, verify=self.run.shard.index == 0)
        apart = layout.differences(self.acceptable(store.identity), store.identity)
        if apart:
            raise UserError(
                f"'{self.store_folder}' was collected with other settings ({'; '.join(apart)}); "
                "use --fresh or another --out"
            )
        return store

    def acceptable(self, found: dict[str, Any]) -> dict[str, Any]:
        """The identity wanted; a store that leaves out more documents than this SAE was trained on is as good."""
        skipped = found.get("skip_documents")
        free = self.settings.data.skip_documents is None and isinstance(skipped, int) and skipped >= self.skip_documents
        return {**self.identity, "skip_documents": skipped} if free else self.identity

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(
            self.store, self.subject, self.settings.sampling, self.sampling_seed,
            directions=self._directions,
            embed=KeptEmbeddings(self),
        )  # fmt: skip

    @cached_property
    def token_shares(self) -> dict[int, float]:
        """Share of each token in the store's text, by id; only tokens that occur."""
        counts = np.bincount(np.asarray(self.store.tokens).ravel().clip(min=0))
        (seen,) = np.nonzero(counts)
        return dict(zip(seen.tolist(), (counts[seen] / counts.sum()).tolist(), strict=True))

    def _directions(self) -> Tensor:
        if self.sae.architecture == "neurons":
            raise UserError("neurons are at right angles: they have no decoder neighbours to take windows of")
        return self.sae.W_dec

    @cached_property
    def sampling_sha(self) -> str:
        """Everything that decides which windows a latent gets."""
        settings = self.settings.sampling.model_dump()
        by_meaning = "embedding" in (*settings["explain_negatives"], *settings["score_negatives"])
        embedder = self.settings.score.embedder if by_meaning else None
        return fingerprint([SAMPLING_VERSION, self.store.identity, settings, self.sampling_seed, embedder])

    @property
    def sampling_seed(self) -> int:
        """Seed of the documents' split and of windows; which latents are explained is the same in all draws."""
        settings = self.settings
        return derive(settings.seed, "draw", settings.draw) if settings.draw else settings.seed

    @property
    def corpus(self) -> str:
        """The data set's name in tables."""
        return own_name(self.dataset)

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
            "l0": self.store.l0,
        }

    def book(self, stage: str, tokens: int, began: float, shard: Shard = WHOLE) -> None:
        """Note the tokens and seconds of a stage that asks no client anything; shards add up."""
        name, model = stage if shard.whole else f"{stage}-{shard.label}", self.subject.label
        ledger, key = Ledger(self.run.folder, name), work_key(name, model=model, tokens=tokens)
        row = {
            "run_id": self.run.run_id, "stage": stage, "model": model, **dict.fromkeys(COUNTED, 0),
            "prompt_tokens": tokens, "seconds": time.perf_counter() - began,
        }  # fmt: skip
        ledger.record(key, {"usage": [row]})
        ledger.flush()
        self.run.select(name, [key])


def _dataset_sha(name: str) -> str | None:
    """sha256 of a file; data sets that are no single file are known by their name."""
    path = Path(name).expanduser()
    if not path.is_file():
        return None
    return sha256_of(path)[:16]
