"""A new domain: one aggregate, one view, a query of it and a watch, tests, and what starts it."""

from importlib.metadata import version
from pathlib import Path

from tandem.scaffold.names import CannotWrite, name_of, problems_of, problems_of_package
from tandem.scaffold.templates import Draft, Written, whole_domain

_PACKAGE_OF_THE_ENGINE = "tandem-cqrs"


def new_domain(given: str, aggregate: str, folder: Path) -> Written:
    """given, aggregate: names. folder: where it is to stand, which is not there or is empty.

    Raises CannotWrite, and has written nothing then.
    """
    problems = [*problems_of_package(given), *problems_of("the aggregate", aggregate)]
    if not problems and name_of(given).snake in (name_of(aggregate).snake, name_of(aggregate).plural):
        problems.append(f"the domain and its aggregate are both called {given!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problems.append(f"{folder} is there already, and is no empty folder")
    if problems:
        raise CannotWrite(*problems)
    thing = name_of(aggregate)
    words = {
        "package": name_of(given).snake,
        "thing": thing.snake,
        "Thing": thing.camel,
        "things": thing.plural,
        "THINGS": thing.upper_plural,
        "tandem": version(_PACKAGE_OF_THE_ENGINE),
    }
    draft = Draft(folder)
    for path, text in whole_domain(words):
        draft.add(path, text)
    return draft.write()
