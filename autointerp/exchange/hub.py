"""A run folder as a data set for the Hugging Face hub: its tables, one configuration each, and a card.

datasets.load_dataset("owner/name", "scores")
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from autointerp.errors import UserError
from autointerp.exchange.card import card
from autointerp.exchange.folder import Tables
from autointerp.files import replacing, write_text
from autointerp.tables.schemas import TABLES

CORPUS = ("text", "pieces", "clean_text", "steered_text", "token")
"""Columns of text that was read or written by models: a path in it is none of the user's."""
NAMES = ("model", "sae_id", "explainer_model", "scorer_model", "corpus")
"""Columns of names, which may be those of folders."""
SECRET = re.compile(r"api_?key|secret|password|authori[sz]ation|credential|^token$", re.IGNORECASE)
"""Settings that are never given away. There should be none: keys come from the environment."""


def export_hub(run: Path, out: Path) -> list[str]:
    """Write the data set's folder; returns the tables in it. Tables without a row are left out: they load nowhere.

    Paths of this machine are reduced to their last part, and the home folder is written as `~`.

    Raises:
        UserError: `run` is no run folder or has no rows, or `out` is one itself.
    """
    tables, out = Tables(run), Path(out)
    if out.resolve() == tables.path.resolve() or (out / "config.yaml").is_file():
        raise UserError(f"'{out}' is a run folder; name another folder with --out")
    counts = {name: sum(batch.num_rows for batch in tables.batches(name, [TABLES[name].names[0]])) for name in TABLES}
    written = [name for name, n in counts.items() if n]
    if not written:
        raise UserError(f"nothing to export in '{run}': its tables have no rows")
    for name in TABLES:
        (out / f"{name}.parquet").unlink(missing_ok=True)
    for name in written:
        with replacing(out / f"{name}.parquet") as temporary, pq.ParquetWriter(temporary, TABLES[name]) as writer:
            for batch in tables.batches(name):
                writer.write_table(_without_paths(batch))
    settings, environment = _public(tables.settings()), _public(_environment(tables.path))
    # Of what was written, from which paths have been taken.
    text = card(tables.path.resolve().name, Tables(out), counts, settings, environment)
    write_text(out / "README.md", text)
    return written


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload a data set's folder with the token that huggingface_hub knows; returns the address.

    Raises:
        UserError: there is no token, or the hub refuses it.
    """
    import huggingface_hub

    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository) is None:
        raise UserError(f"--push '{repository}': an owner and a name are wanted, such as me/my-run")
    if huggingface_hub.get_token() is None:
        raise UserError(
            "no token for the Hugging Face hub: set HF_TOKEN, or log in with `hf auth login`, and run the same command"
        )
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(
            folder_path=str(folder), repo_id=repository, repo_type="dataset", commit_message="autointerp export",
            allow_patterns=["README.md", *(f"{name}.parquet" for name in TABLES)],
        )  # fmt: skip
    # Of the hub's and of the network's own errors, none of which carries the token in its first line.
    except Exception as error:
        token = huggingface_hub.get_token() or ""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(token or "\0", "***")
        raise UserError(f"the hub did not take '{repository}': {reason}; the data set is in '{folder}'") from None
    return f"https://huggingface.co/datasets/{repository}"


def _without_paths(table: pa.Table) -> pa.Table:
    for place, field in enumerate(table.schema):
        if field.type != pa.string() or field.name in CORPUS:
            continue
        column = table.column(field.name)
        known = pc.unique(column).to_pylist() if field.name in NAMES else []
        if field.name in NAMES:
            short = {name: local_name(name) for name in known if isinstance(name, str)}
            if any(name != short[name] for name in short):
                column = pa.array([short.get(name) for name in column.to_pylist()], pa.string())
        else:
            column = pc.replace_substring(column, pattern=str(Path.home()), replacement="~")
        table = table.set_column(place, field, column)
    return table


def local_name(name: str) -> str:
    """The last part of a path of this machine; any other name, such as one on the hub, as it is."""
    local = name.startswith(("/", "~", "./", "../")) or re.match(r"[A-Za-z]:[\\/]", name)
    return (PurePath(name.replace("\\", "/")).name or name) if local else name


def _public(value: Any) -> Any:
    """Settings without paths of this machine, and addresses without a user and password."""
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items() if not SECRET.search(str(key)) and key != "out"}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
    return local_name(value).replace(str(Path.home()), "~")


def _environment(run: Path) -> dict[str, Any]:
    try:
        found = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
