"""apt-get changes a person's machine: it is never run before that is said, nor where it is forbidden."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[3] / "tools"
# It keeps what had been said when it was started.
APT_GET = '#!/bin/sh\ncp "$SAID" "$SAID.before"\necho "$@" >>"$SAID.run"\n'


def install(script: str, folder: Path, user: int, **variables: str) -> tuple[int, str]:
    """Runs it where programs of the same names stand before the real ones; returns its exit code and what it said."""
    programs = {"apt-get": APT_GET, "id": f"#!/bin/sh\necho {user}\n", "sudo": '#!/bin/sh\nshift\nexec "$@"\n'}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    said = folder / "said"
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SAID": str(said)} | variables
    with said.open("w") as out:
        code = subprocess.run([TOOLS / script], env=environment, stdout=out, stderr=out, check=False).returncode
    return code, said.read_text()


@pytest.mark.parametrize(("user", "how"), [(0, "apt-get"), (1000, "sudo -n apt-get")])
@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("install_memcached.sh", "memcached"),
        ("install_prometheus.sh", "prometheus"),
        ("install_h2load.sh", "nghttp2-client gcc libc6-dev"),
    ],
)
def test_it_says_what_it_runs_before_it_runs_it(
    script: str, packages: str, user: int, how: str, tmp_path: Path
) -> None:
    code, _ = install(script, tmp_path, user)
    assert code == 0
    before = (tmp_path / "said.before").read_text()
    assert before == f"Running {how} install {packages} ... (APT=no: without it)\n"
    assert (tmp_path / "said.run").read_text().strip().endswith(packages)


def test_it_is_not_run_where_that_is_forbidden(tmp_path: Path) -> None:
    code, said = install("install_memcached.sh", tmp_path, user=0, APT="no")
    assert code == 0, "everything goes on without it"
    assert said.startswith("memcached is missing (APT=no): reads are served from the database")
    assert not (tmp_path / "said.run").exists()
