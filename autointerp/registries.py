"""Every registry of the program in one place. A new member is one file in its folder, or a plugin's entry point."""

from __future__ import annotations

from sae.registry import Registry

SAES = Registry("SAE architecture", "sae.architectures", "autointerp.saes")
SCORERS = Registry(
    "scorer", "scoring", "autointerp.scorers", exclude=frozenset({"types", "intervals", "windows"})
)  # fmt: skip
EXPLAINERS = Registry("explainer", "autointerp.explain", "autointerp.explainers")
CLIENTS = Registry("client", "autointerp.clients", "autointerp.clients", exclude=frozenset({"fake_server"}))
