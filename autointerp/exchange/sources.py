"""Which SAEs of a run are given away, and what they are called elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from autointerp.errors import UserError
from autointerp.exchange.folder import Tables
from autointerp.exchange.schemas import MODEL, SOURCE
from scoring.types import EXPLANATION_CONTROLS

FACTS: dict[str, list[str]] = {
    "explanations": [],
    "latents": [],
    "windows": [],
    "sae_metrics": ["hookpoint"],
    "scores": ["model", "hookpoint", "layer", "control"],
}
LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.|:|-|$)")
"""The first number of a hookpoint that is a part of its own."""


@dataclass(frozen=True, slots=True)
class Source:
    """One SAE. `source_id` is Neuronpedia's `{layer}-{set}`, which stands in a key called `layer`."""

    sae_id: str
    model_id: str
    source_id: str

    @property
    def set_name(self) -> str:
        return self.source_id.partition("-")[2]


def sources(tables: Tables, *, sae: str | None, model_id: str | None, source_id: str | None) -> list[Source]:
    """The SAEs to give away, by name: the one that is named, or all that are no control of another.

    Raises:
        UserError: there is none, what they are called cannot be told, or is no name that Neuronpedia takes.
    """
    facts = _facts(tables)
    if not facts:
        raise UserError(f"nothing to export in '{tables.path}': its tables name no SAE")
    if sae is not None and sae not in facts:
        raise UserError(f"'{tables.path}' has no SAE '{sae}' (but {', '.join(sorted(facts))})")
    chosen = [sae] if sae is not None else [name for name in sorted(facts) if "control" not in facts[name]]
    if not chosen:
        raise UserError(
            f"'{tables.path}' has only controls ({', '.join(sorted(facts))}); name one with --sae if it is meant"
        )
    if source_id is not None and len(chosen) > 1:
        raise UserError(f"--source-id names one SAE, but there are {len(chosen)}: name one with --sae")
    found = [
        Source(name, _model(model_id, facts[name], tables), _source(source_id, name, facts[name])) for name in chosen
    ]
    if len({source.source_id for source in found}) < len(found):
        raise UserError("two SAEs would get the same source id: export each with --sae and --source-id")
    return found


def _facts(tables: Tables) -> dict[str, dict[str, Any]]:
    """What the tables say of each SAE: model, hookpoint, layer, and `control` where it stands in another's place."""
    facts: dict[str, dict[str, Any]] = {}
    for table, columns in FACTS.items():
        for batch in tables.batches(table, ["sae_id", *columns]):
            for row in batch.group_by(["sae_id", *columns]).aggregate([]).to_pylist():
                if row["sae_id"] is None:
                    continue
                known = {name: row[name] for name in columns if row[name] is not None}
                control = known.pop("control", "none")
                if control not in ("none", *EXPLANATION_CONTROLS):
                    known["control"] = control
                facts.setdefault(str(row["sae_id"]), {}).update(known)
    return facts


def _model(given: str | None, facts: dict[str, Any], tables: Tables) -> str:
    subject = tables.settings().get("subject")
    name = given or facts.get("model") or (subject.get("model") if isinstance(subject, dict) else None)
    if not name:
        raise UserError(f"'{tables.path}' does not say of which model it is: name it with --model-id")
    slug = re.sub(r"[^a-z0-9._-]+", "-", str(name if given else PurePath(str(name)).name).lower()).strip("-._")
    if given and slug != given:
        raise UserError(f"--model-id '{given}' is no name that Neuronpedia takes; say '{slug or 'gpt2-small'}'")
    return slug if re.match(MODEL["pattern"], slug) else "model"


def _source(given: str | None, sae_id: str, facts: dict[str, Any]) -> str:
    if given is not None:
        if not re.match(SOURCE["pattern"], given):
            raise UserError(f"--source-id '{given}' is not a layer and the name of a set, in lower case: 6-res-jb")
        return given
    place = str(facts.get("hookpoint") or sae_id)
    number = LAYER.search(place)
    layer = facts.get("layer") if facts.get("layer") is not None else number and int(number.group(1))
    if layer is None:
        raise UserError(f"the layer of '{sae_id}' is not known: name its place with --source-id, such as 6-res-jb")
    return f"{layer}-" + re.sub(r"[^a-z0-9]+", "-", sae_id.lower()).strip("-")
