"""The release before this one, as it was: its own code, contract and migrations, out of the repository's history."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEFORE = "6060bba"
"""The last commit that users had, until there is a tag."""


def release_before() -> str | None:
    """The newest release that is tagged before this commit, else BEFORE; None in a clone without that history."""
    tags = _git("tag", "--list", "v*", "--merged", "HEAD~1", "--sort=-version:refname").split()
    found = _git("rev-parse", "--quiet", "--verify", f"{tags[0] if tags else BEFORE}^{{commit}}").strip()
    return found or None


def unpack(commit: str, folder: Path) -> Path:
    """The tree of a commit, in a folder; returns the folder."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, env=_trusting(), capture_output=True, check=True)
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


def environment_of(tree: Path) -> dict[str, str]:
    """Variables with which Python runs what is in the tree, and not what is here."""
    return {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'gen'}", "PYTHONSAFEPATH": "1"}


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, env=_trusting(), capture_output=True, text=True, check=False)
    return found.stdout


def _trusting() -> dict[str, str]:
    """The clone may belong to another user."""
    return {**os.environ, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
