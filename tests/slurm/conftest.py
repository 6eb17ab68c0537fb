"""A Slurm of this machine for the session, ended with it. Started by `slurm_up.sh`, on 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "slurm_up.sh"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of the daemons; `SLURM_CONF` is set."""
    if shutil.which("sbatch") is None or os.getuid() != 0:
        pytest.skip("no Slurm to start: apt-get install slurm-wlm munge, and be root")
    lab = tmp_path_factory.mktemp("lab")
    # Folders of pytest are its user's alone; munged wants to be reached by all.
    for folder in (lab, *lab.parents[:2]):
        folder.chmod(0o755)
    os.environ["SLURM_LAB"] = str(lab)
    subprocess.run(["bash", str(SCRIPT), "up"], check=True, timeout=90)
    os.environ["SLURM_CONF"] = str(lab / "slurm.conf")
    try:
        yield lab
    finally:
        subprocess.run(["bash", str(SCRIPT), "down"], check=True, timeout=90)
        del os.environ["SLURM_CONF"], os.environ["SLURM_LAB"]
