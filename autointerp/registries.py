"""Every registry of the program in one place. A new member is one file in its folder, or a plugin's entry point."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from autointerp.errors import UserError
from sae.registry import Registry, UnknownName

SAES = Registry("SAE architecture", "sae.architectures", "autointerp.saes")
SCORERS = Registry(
    "scorer", "scoring", "autointerp.scorers",
    exclude=frozenset({
        "types", "intervals", "windows", "metrics", "sequential", "stopping", "judging", "readings", "decoys",
        "simulators",
    }),
)  # fmt: skip
EXPLAINERS = Registry("explainer", "autointerp.explain", "autointerp.explainers")
CLIENTS = Registry("client", "autointerp.clients", "autointerp.clients", exclude=frozenset({"fake_server", "announce"}))


def member(registry: Registry, name: str) -> ModuleType:
    """A registered module; an unknown name is the user's to mend."""
    try:
        return registry[name]
    except UnknownName as error:
        raise UserError(str(error)) from error


def needs_of(module: ModuleType, config: Any) -> frozenset[type]:
    """What an explainer or scorer asks; with some, that depends on how they are configured."""
    found: frozenset[type] = module.needs(config) if hasattr(module, "needs") else module.NEEDS
    return found


def configured(module: ModuleType, options: Mapping[str, Any], where: str) -> Any:
    """The module's `Config` with these options; `where` is the setting they stand in."""
    try:
        return module.Config(**options)
    except ValueError as error:
        raise UserError(f"config error at {where}: {error}") from error
    except TypeError as error:
        known = ", ".join(name for name, field in module.Config.__dataclass_fields__.items() if field.init)
        raise UserError(f"config error at {where}: {error} (known: {known})") from error
