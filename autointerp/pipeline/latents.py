"""Which latents a run is about, and the table of all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autointerp.errors import NoLatents, UserError
from autointerp.files import read_array, write_array
from autointerp.pipeline.session import Session
from autointerp.seeds import generator
from autointerp.tables.parts import write_final
from sae.metrics import DENSE


def states(session: Session, *, keep: bool = False) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """State of every latent (`live`, `rare`, `dead`, `dense`) and its activating windows on the poorer side.

    Counting windows takes a pass over the whole store; with `keep`, shards that come later need not make it again.
    """
    store, kept = session.store, session.run.folder / "work" / f"window_counts-{session.sampling_sha}.npy"
    counts: NDArray[np.int64] = np.array(read_array(kept)) if kept.is_file() else session.sampler.window_counts()
    if keep and not kept.is_file():
        write_array(kept, counts)
    density = store.n_fired / max(1, store.n_tokens)
    state = np.full(store.n_latents, "live", dtype="<U5")
    state[counts < session.settings.sampling.min_windows] = "rare"
    state[density > DENSE] = "dense"
    state[store.n_fired == 0] = "dead"
    return state, counts


def write_latents(session: Session, state: NDArray[np.str_], counts: NDArray[np.int64]) -> None:
    """`latents.parquet`: every latent of the SAE, scored or not; coverage is part of the result."""
    figures = session.store.statistics()
    n = session.store.n_latents
    frame = pd.DataFrame(
        {
            "run_id": session.run.run_id,
            "sae_id": session.sae_id,
            "latent": np.arange(n),
            "n_fired": figures["n_fired"],
            "n_negative": figures["n_negative"],
            "n_tokens": session.store.n_tokens,
            "density": figures["n_fired"] / max(1, session.store.n_tokens),
            "max_activation": figures["max_activation"],
            "mean_activation": figures["mean_activation"],
            "n_windows": counts,
            "state": state,
            "corpus": session.corpus,
        }
    )
    write_final(session.run.folder, "latents", frame)


def choose(session: Session, state: NDArray[np.str_]) -> list[int]:
    """The latents to explain, ascending: those named, or a seeded sample of the live ones.

    Raises:
        UserError: the selection cannot be read, names no latent of this SAE, or none is live.
    """
    settings = session.settings
    live = np.flatnonzero((state == "live") | (state == "dense"))
    n = session.store.n_latents
    chosen = parse(settings.latents, live, n, settings.seed) if settings.latents else live
    if settings.limit is not None and len(chosen) > settings.limit:
        chosen = generator(settings.seed, "limit").permutation(chosen)[: settings.limit]
    if not len(chosen):
        raise NoLatents(
            f"no latent to explain: {int((state == 'dead').sum())} are dead and {int((state == 'rare').sum())} rare "
            f"on {session.store.n_tokens:,} tokens; collect more with --tokens, or lower sampling.min_windows"
        )
    return sorted(int(i) for i in chosen)


Target = tuple[int, int]
"""What is explained and scored: a latent's pole, 1 or -1."""


def targets(session: Session, latents: Sequence[int]) -> list[Target]:
    """The poles of these latents that are explained: the main one, and the other where it fires enough by itself.

    What makes a latent fire and what makes it fire negatively are two things; one explanation would be of neither.
    """
    found, sampler = [], session.sampler
    for latent in latents:
        main = sampler.pole_of(latent)
        found += [(latent, pole) for pole in (main, -main) if pole == main or sampler.fires_enough(latent, pole)]
    return found


def parse(text: str, live: NDArray[np.int64], n_latents: int, seed: int) -> NDArray[np.int64]:
    """`0:500`, `17,23` or `random:200` (a sample of the live ones)."""
    if found := re.fullmatch(r"random:(\d+)", text):
        return generator(seed, "limit").permutation(live)[: int(found.group(1))]
    if found := re.fullmatch(r"(\d*):(\d*)", text):
        ids = np.arange(int(found.group(1) or 0), int(found.group(2) or n_latents))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        ids = np.unique([int(part) for part in text.split(",")])
    else:
        raise UserError(f"--latents '{text}' is none of 0:500, 17,23 or random:200")
    if len(ids) and ids.max() >= n_latents:
        raise UserError(f"--latents '{text}' goes beyond this SAE's {n_latents} latents (0 to {n_latents - 1})")
    return ids
