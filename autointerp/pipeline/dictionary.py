"""The dictionary that a run is about: an SAE from disk or the hub, neurons, or a control in an SAE's place."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import sae as sae_package
from autointerp.collect.sites import width_at
from autointerp.config import RunSettings
from autointerp.errors import UserError
from autointerp.registries import SAES, member
from autointerp.seeds import derive
from autointerp.subject.hookpoints import neurons_at
from autointerp.subject.load import SubjectModel
from sae.base import SAEMetadata, SparseAutoencoder

NEURONS = re.compile(r"neurons(?::(\d+))?")
NEURONS_K = 32
RANDOM_K = 50
"""Latents per token of a random SAE where the real one's number is not known (Paulo et al. 2024)."""
RANDOM_SAE, RANDOM_MODEL, NEURONS_TOPK = "random_sae", "random_model", "neurons_topk"


def load_dictionary(spec: str, settings: RunSettings, subject: Callable[[], SubjectModel]) -> SparseAutoencoder:
    """What `--sae` names: a path or hub id, or `neurons:32`; with `--null random_sae`, a random one like it.

    Raises:
        UserError: nothing is there, or neurons without a model and a hookpoint.
    """
    if found := NEURONS.fullmatch(spec):
        return neurons(int(found.group(1) or NEURONS_K), settings, subject)
    try:
        loaded = sae_package.load(spec)
    except sae_package.SAEError as error:
        raise UserError(f"{error}; `autointerp demo` trains one to try things with") from error
    return random_sae(loaded, settings.seed) if settings.null == RANDOM_SAE else loaded


def is_neurons(spec: str) -> bool:
    return NEURONS.fullmatch(spec) is not None


def neurons(k: int, settings: RunSettings, subject: Callable[[], SubjectModel]) -> SparseAutoencoder:
    """The k largest neurons of each token, of the MLP that the hookpoint names, or of the hookpoint itself."""
    wanted = settings.subject
    if wanted.model is None or wanted.hookpoint is None:
        raise UserError(
            "neurons have no metadata: name the model with --model, and the block with --hookpoint, e.g. layers.9"
        )
    if settings.null == RANDOM_SAE:
        raise UserError("neurons are a control themselves; --null random_sae goes with an SAE")
    hookpoint = neurons_at(subject().model, wanted.hookpoint)
    width = width_at(subject(), hookpoint)
    metadata = SAEMetadata(model=wanted.model, hookpoint=hookpoint)
    try:
        made: SparseAutoencoder = member(SAES, "neurons").create({"d_in": width, "n_latents": width, "k": k}, metadata)
    except sae_package.SAEError as error:
        raise UserError(f"neurons:{k} cannot be: {error}") from error
    return made


def random_sae(like: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """A TopK dictionary of random unit directions (AbsTopK for a signed one), as wide and as sparse as another.

    It reads activations less the other's decoder bias, about their mean: directions from the origin would
    mostly say how large that is.
    """
    known = like.config_dict()
    k = known.get("k") or round(like.metadata.metrics.get("l0", 0)) or RANDOM_K
    module = member(SAES, "abstopk" if getattr(like, "signed", False) else "topk")
    config: dict[str, Any] = {
        "d_in": like.d_in, "n_latents": like.n_latents, "k": min(int(k), like.n_latents),
        "d_out": like.config.d_out, "apply_b_dec_to_input": like.config.width_out == like.d_in,
        "input_norm": like.config.input_norm,
    }  # fmt: skip
    origin = {"null": RANDOM_SAE, "like": sae_package.content_sha(like), "null_seed": seed}
    metadata = replace(like.metadata, metrics={}, extra={**like.metadata.extra, **origin})
    made: SparseAutoencoder = module.create(config, metadata)
    made.initialise(derive(seed, RANDOM_SAE))
    if config["apply_b_dec_to_input"]:
        made.b_dec.data.copy_(like.b_dec.detach())
    return made


def random_model_seed(settings: RunSettings) -> int | None:
    """Seed of the random model that `--null random_model` asks for; None where a trained one is wanted."""
    return derive(settings.seed, RANDOM_MODEL) if settings.null == RANDOM_MODEL else None


def control_of(dictionary: SparseAutoencoder, subject: SubjectModel) -> str:
    """What scores of this dictionary on this model are in the column `control`: `none` for the real thing."""
    if subject.null:
        return RANDOM_MODEL
    if dictionary.architecture == "neurons":
        return NEURONS_TOPK
    return RANDOM_SAE if dictionary.metadata.extra.get("null") == RANDOM_SAE else "none"
