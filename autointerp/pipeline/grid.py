"""The dictionaries of a training run: every combination of the grid, each with a name and a folder of its own."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from autointerp.collect.sites import gradient_site, width_at
from autointerp.config import TrainSettings
from autointerp.errors import UserError
from autointerp.registries import SAES, member
from autointerp.subject.hookpoints import find
from autointerp.subject.load import SubjectModel
from sae.base import SAEMetadata, SparseAutoencoder
from sae.errors import SAEError
from sae.learner import Reads


@dataclass(frozen=True, kw_only=True)
class Case:
    """One dictionary of a grid."""

    name: str
    architecture: str
    hookpoint: str
    target: str | None
    seed: int
    config: dict[str, Any]

    @property
    def reads(self) -> Reads:
        gradient = gradient_site(self.hookpoint) if self.architecture == "gradient" else None
        return Reads(self.hookpoint, self.target, gradient)

    def create(self, metadata: SAEMetadata | None = None) -> SparseAutoencoder:
        """The dictionary, untrained.

        Raises:
            UserError: an option is unknown or does not fit.
        """
        module = member(SAES, self.architecture)
        known = [field.name for field in fields(module.Config)]
        for name in set(self.config) - set(known):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(
                f"config error at train.options.{self.architecture}.{name}: no such option{hint} "
                f"(known: {', '.join(known)})"
            )
        try:
            model: SparseAutoencoder = module.create(self.config, metadata)
        except TypeError as error:
            raise UserError(f"config error at train.options.{self.architecture}: {error}") from error
        except SAEError as error:
            raise UserError(f"{self.name}: {error}") from error
        if not hasattr(model, "step"):
            raise UserError(f"'{self.architecture}' can be loaded and used, but not trained")
        return model


def grid(subject: SubjectModel, settings: TrainSettings, hookpoints: Sequence[str]) -> list[Case]:
    """Every combination, after a look at whether all of them can be.

    Raises:
        UserError: an architecture, hookpoint or option is unknown.
    """
    if not hookpoints:
        raise UserError("no hookpoint: say where to train with --hookpoint, e.g. layers.9 or layers.9,layers.12.mlp")
    for hookpoint in (*hookpoints, *([settings.target] if settings.target else [])):
        find(subject.model, hookpoint)
    d_out = width_at(subject, settings.target) if settings.target else None
    for name in set(settings.options) - set(settings.architectures):
        raise UserError(f"config error at train.options.{name}: this architecture is not trained here")
    for architecture in settings.architectures:
        if getattr(member(SAES, architecture), "NEEDS_TARGET", False) and settings.target is None:
            raise UserError(
                f"'{architecture}' reads one activation and reconstructs another: name that one with --target, "
                "e.g. --hookpoint layers.9.mlp:in --target layers.9.mlp"
            )
    cases = []
    for architecture, hookpoint in itertools.product(settings.architectures, hookpoints):
        d_in = width_at(subject, hookpoint)
        module = member(SAES, architecture)
        has_k = "k" in {field.name for field in fields(module.Config)}
        widths = settings.widths or tuple(d_in * expansion for expansion in settings.expansions)
        for width, k, seed in itertools.product(widths, settings.k if has_k else (None,), settings.seeds):
            config: dict[str, Any] = {"d_in": d_in, "n_latents": width}
            config |= {"k": k} if k is not None else {}
            config |= {"d_out": d_out, "apply_b_dec_to_input": False} if d_out is not None else {}
            config |= settings.options.get(architecture, {})
            parts = [architecture, hookpoint.replace(":", "-"), str(width)]
            parts += [f"k{config['k']}"] if "k" in config else []
            case = Case(
                name="-".join([*parts, f"s{seed}"]), architecture=architecture, hookpoint=hookpoint,
                target=settings.target, seed=seed, config=config,
            )  # fmt: skip
            case.create()
            cases.append(case)
    for name, n in Counter(case.name for case in cases).items():
        if n > 1:
            raise UserError(f"the grid holds '{name}' {n} times; name every hookpoint, width, k and seed once")
    return cases
