"""The program `tandem`: it is there with the client alone too, and then says what it lacks."""

import gc
import sys
from importlib import import_module


def main() -> None:
    # Modules stay: to look for garbage among them is 0.2 s of the 1.1 s of processor time that their import takes.
    gc.disable()
    try:
        app = import_module("shop.cli").app
    except ModuleNotFoundError as error:
        sys.exit(f"tandem: {error.name} is missing: pip install 'tandem-cqrs[server]'")
    gc.enable()
    app()
