"""Find implementations by name: a file in a folder, or an installed plugin's entry point.

A registry never imports what it is not asked for, so listing names is cheap. It serves the
architectures and formats here and the scorers, explainers and clients of the other packages.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType


class UnknownName(LookupError):
    """The name is not registered. The message lists what is, and the closest match."""


class Registry:
    """Modules of `package` by file name, and entry points of `group` by their name.

    Every member is a module; what it has to define is said by whoever owns the registry. A plugin
    that takes a built-in's name is refused, since results name their method.
    """

    def __init__(self, kind: str, package: str, group: str, *, exclude: frozenset[str] = frozenset()) -> None:
        self.kind, self.package, self.group, self.exclude = kind, package, group, exclude

    @cached_property
    def _builtin(self) -> dict[str, str]:
        package = importlib.import_module(self.package)
        found = {info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")}
        return {name: f"{self.package}.{name}" for name in sorted(found - self.exclude)}

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._builtin or point.name in found:
                raise UnknownName(
                    f"two {self.kind}s are called '{point.name}'; the second comes from '{point.value}': "
                    "uninstall it or ask its author to rename it"
                )
            found[point.name] = point
        return found

    @property
    def names(self) -> list[str]:
        return sorted([*self._builtin, *self._plugins])

    def __contains__(self, name: str) -> bool:
        return name in self._builtin or name in self._plugins

    def __getitem__(self, name: str) -> ModuleType:
        if name in self._builtin:
            return importlib.import_module(self._builtin[name])
        if name in self._plugins:
            loaded = self._plugins[name].load()
            if not isinstance(loaded, ModuleType):
                raise UnknownName(f"the plugin '{name}' of group {self.group} is no module but a {type(loaded)}")
            return loaded
        close = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UnknownName(f"unknown {self.kind} '{name}'{hint} (known: {', '.join(self.names)})")

    def describe(self, name: str) -> str:
        """First paragraph of the member's docstring, on one line."""
        return " ".join((self[name].__doc__ or "").strip().split("\n\n")[0].split())
