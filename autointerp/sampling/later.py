"""Windows that are drawn when somebody first looks at them: most runs never do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import overload

from scoring.types import Window


class Later(Sequence[Window]):
    """Equal to any sequence of the same windows. `draw` is called once, and must not depend on when."""

    def __init__(self, draw: Callable[[], tuple[Window, ...]]) -> None:
        self._draw = draw

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        return self._draw()

    @overload
    def __getitem__(self, index: int) -> Window: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Window, ...]: ...

    def __getitem__(self, index: int | slice) -> Window | tuple[Window, ...]:
        return self.windows[index]

    def __len__(self) -> int:
        return len(self.windows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.windows == tuple(other)

    def __hash__(self) -> int:
        return hash(self.windows)

    def __repr__(self) -> str:
        return repr(self.windows)
