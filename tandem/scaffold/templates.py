"""The templates: files that end with .template, in which {{word}} stands for a word; in their paths too."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tandem.scaffold.names import CannotWrite

_FOLDER = Path(__file__).parent / "templates"
_ENDING = ".template"


class Written(NamedTuple):
    """What was written. files: new ones, changed: those that got more; both relative to the folder."""

    folder: Path
    files: tuple[str, ...]
    changed: tuple[str, ...]


def filled(text: str, words: Mapping[str, str]) -> str:
    """Raises KeyError for a word that is not there."""
    return re.sub(r"\{\{(\w+)\}\}", lambda it: words[it[1]], text)


def part(name: str, words: Mapping[str, str]) -> str:
    """One template of a part, filled: "command/rule.py"."""
    return filled((_FOLDER / "parts" / f"{name}{_ENDING}").read_text(encoding="utf-8"), words)


def whole_domain(words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The path and the text of each file of a new domain."""
    home = _FOLDER / "domain"
    for path in sorted(home.rglob(f"*{_ENDING}")):
        name = PurePosixPath(path.relative_to(home)).as_posix().removesuffix(_ENDING)
        yield filled(name, words), filled(path.read_text(encoding="utf-8"), words)


class Draft:
    """New files of a folder and changes of those that are there, kept until all is known to be right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self._new: dict[str, str] = {}
        self._changed: dict[str, str] = {}

    def text(self, path: str) -> str:
        """Of a file that is there, with what is to change; a problem and "" where it is not."""
        if path in self._changed:
            return self._changed[path]
        if not (self.folder / path).is_file():
            self.problems.append(f"there is no {path}")
            return ""
        return (self.folder / path).read_text(encoding="utf-8")

    def add(self, path: str, text: str) -> None:
        """A new file; a problem where one is there."""
        if (self.folder / path).exists():
            self.problems.append(f"{path} is there already")
        self._new[path] = text

    def change(self, path: str, changed: Callable[[str], str | None], lacks: str) -> None:
        """changed: the text of now to that of then; None where it does not have what it should, which `lacks` says."""
        text = self.text(path)
        found = changed(text) if text else text
        if found is None:
            self.problems.append(f"{path} has no {lacks}")
        elif text:
            self._changed[path] = found

    def write(self) -> Written:
        """Raises CannotWrite with all problems, and has written nothing then."""
        if self.problems:
            raise CannotWrite(*dict.fromkeys(self.problems))
        for path, text in {**self._new, **self._changed}.items():
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        return Written(self.folder, tuple(sorted(self._new)), tuple(sorted(self._changed)))
