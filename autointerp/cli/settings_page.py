"""The table of settings in `docs/config.md`, made from the settings themselves (`make docs`)."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic.fields import FieldInfo

from autointerp.config import RunSettings, Section


def settings_page() -> str:
    """A markdown table: name, default, meaning."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, info in RunSettings.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            lines += [_line(f"{name}.{key}", field) for key, field in inner.model_fields.items()]
        else:
            lines.append(_line(name, info))
    return "\n".join(lines)


def _line(name: str, info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=False)
    text = ", ".join(map(str, default)) if isinstance(default, tuple) else default
    shown = "" if default is None or default == () else f"`{text}`"
    return f"| `{name}` | {shown} | {' '.join((info.description or '').split())} |"


def main(path: Path = Path("docs/config.md")) -> None:
    text = path.read_text()
    block = f"<!-- settings -->\n{settings_page()}\n<!-- /settings -->"
    path.write_text(re.sub(r"<!-- settings -->.*<!-- /settings -->", lambda _: block, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
