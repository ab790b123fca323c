"""The program `tandem`: it is there with the client alone too, and then says what it lacks."""

import sys
from importlib import import_module


def main() -> None:
    try:
        app = import_module("shop.cli").app
    except ModuleNotFoundError as error:
        sys.exit(f"tandem: {error.name} is missing: pip install 'tandem-cqrs[server]'")
    app()
