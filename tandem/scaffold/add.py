"""One command, event, view or query more, of a domain that `tandem new` has begun.

Its part of the contract is written whole, what a person decides is a stub that says so, and a test fails until then.
"""

import ast
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tandem.runtime.migrations import newest_revision
from tandem.scaffold.names import CannotWrite, Name, name_of, problems_of
from tandem.scaffold.templates import Draft, Written, part

_AGGREGATE = re.compile(r'^(?P<constant>\w+) = Aggregate\(\s*"(?P<name>\w+)"', re.MULTILINE)
_QUERIES = {"get": "get", "watch": "watch", "list": "list"}
"""The kinds of queries, by the verb that their names begin with."""


class Subject(NamedTuple):
    """An aggregate as its module has it. begun: the event that begins one; empty where there is none."""

    constant: str
    name: str
    module: str
    begun: str

    @property
    def words(self) -> dict[str, str]:
        return {
            "thing": self.name,
            "things": Path(self.module).stem,
            "THINGS": self.constant,
            "module": self.module,
            "Begun": self.begun,
            "begun": name_of(self.begun).snake,
        }


class Project:
    """A domain's folder. Raises CannotWrite for one that `tandem new` has not made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            settings = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            settings = {}
        except tomllib.TOMLDecodeError as error:
            raise CannotWrite(f"{folder / 'pyproject.toml'}: {error}") from error
        self.package = settings.get("tool", {}).get("tandem", {}).get("package", "")
        if not self.package:
            raise CannotWrite(
                f"{folder} is no folder that `tandem new` has made: its pyproject.toml lacks [tool.tandem] package"
            )
        self.contract = f"proto/{self.package}/v1"

    def subjects(self) -> dict[str, Subject]:
        """The aggregates, by name."""
        found = {}
        for path in sorted((self.folder / self.package).glob("*.py")):
            text = path.read_text(encoding="utf-8")
            for it in _AGGREGATE.finditer(text):
                begins = re.search(rf"@change\({it['constant']}\)\ndef \w+\(\s*\w+: States, \w+: events\.(\w+)", text)
                module = path.relative_to(self.folder).as_posix()
                found[it["name"]] = Subject(it["constant"], it["name"], module, begins[1] if begins else "")
        return found

    def subject(self, of: str) -> Subject:
        """The aggregate that is named, or the only one. Raises CannotWrite."""
        subjects = self.subjects()
        known = ", ".join(subjects) or "none"
        if of and name_of(of).snake not in subjects:
            raise CannotWrite(f"there is no aggregate {of!r} in {self.package}/: there is {known}")
        if not of and len(subjects) != 1:
            raise CannotWrite(f"say which aggregate it is about, with --of: there is {known}")
        return subjects[name_of(of).snake] if of else next(iter(subjects.values()))

    def views(self) -> dict[str, str]:
        """The messages of the contract's views, by the views' names."""
        text = (self.folder / self.contract / "queries.proto").read_text(encoding="utf-8")
        messages = re.findall(r"^message (\w+) \{\n  option \(tandem\.options\.v1\.view\)", text, re.MULTILINE)
        return {name_of(it).snake: it for it in messages}


def add_command(folder: Path, given: str, of: str = "", *, creates: bool = False) -> Written:
    """of: the aggregate that it is about; needed where there are several. creates: whether it creates one.

    This and the others raise CannotWrite, and have written nothing then.
    """
    project, draft, name = _begun(folder, "the command", given)
    subject = project.subject(of)
    if not creates:
        _must_begin(subject)
    kind, words = "creating_command" if creates else "command", _words(project, name, subject)
    _rpc(draft, f"{project.contract}/commands.proto", "CommandService", kind, words)
    _function(draft, subject.module, name, part(f"{kind}/rule.py", words), before=r"^(?:@change\(|change_fields\()")
    draft.add(f"tests/test_{name.snake}.py", part(f"{kind}/test.py", words))
    return draft.write()


def add_event(folder: Path, given: str, of: str = "") -> Written:
    project, draft, name = _begun(folder, "the event", given)
    subject = project.subject(of)
    _must_begin(subject)
    words, path = _words(project, name, subject), f"{project.contract}/events.proto"
    _messages(draft, path, "event", words, [name.camel])
    draft.change(path, lambda text: _with_kind(text, words), "message Event with a oneof kind")
    _function(draft, subject.module, name, part("event/change.py", words), before=r"\Z")
    draft.add(f"tests/test_{name.snake}.py", part("event/test.py", words))
    return draft.write()


def add_view(folder: Path, given: str, of: str = "") -> Written:
    project, draft, name = _begun(folder, "the view", given)
    subject = project.subject(of)
    _must_begin(subject)
    home = f"{project.package}/projections"
    migrations = f"{project.package}/migrations/read"
    before = newest_revision(folder / migrations)
    revision = f"{int(before) + 1:04}"
    module = f"{home}/{name.snake}.py"
    words = _words(project, name, subject) | {"before": before, "revision": revision, "module": module}
    _messages(draft, f"{project.contract}/queries.proto", "view", words, [name.camel])
    draft.add(module, part("view/projection.py", words))
    draft.add(f"{migrations}/versions/{revision}_{name.snake}.py", part("view/migration.py", words))
    draft.add(f"tests/test_{name.snake}.py", part("view/test.py", words))
    return draft.write()


def add_query(folder: Path, given: str, view: str = "") -> Written:
    """given: begins with Get, Watch or List. view: which it reads; needed where the rest of the name is none."""
    project, draft, name = _begun(folder, "the query", given)
    verb, _, noun = name.snake.partition("_")
    if verb not in _QUERIES:
        raise CannotWrite(f"the query {given!r} is to begin with {', '.join(it.capitalize() for it in _QUERIES)}")
    views, wanted = project.views(), name_of(view or noun or given).snake
    if wanted not in views:
        raise CannotWrite(f"there is no view {wanted!r}, say which with --view: there is {', '.join(views) or 'none'}")
    contract, kind = f"{project.contract}/queries.proto", _QUERIES[verb]
    key = re.search(rf"^message {views[wanted]} \{{.*?string (\w+)_id = 1;", draft.text(contract), re.M | re.S)
    words = {
        "package": project.package, "Name": name.camel, "name": name.snake,
        "View": views[wanted], "view": wanted, "thing": key[1] if key else "",
    }  # fmt: skip
    if not key and kind != "list":
        draft.problems.append(f"{contract}: the first field of {views[wanted]} is no id")
    _rpc(draft, contract, "QueryService", kind, words)
    if kind == "watch":
        projection = f"{project.package}/projections/{wanted}.py"
        draft.change(projection, _logged, "PROJECTION = Projection(…) with a line for each argument")
    if kind == "list":
        module = f"{project.package}/{name.snake}.py"
        draft.add(module, part("list/select.py", words | {"module": module}))
        server = f"{project.package}/query_server.py"
        draft.change(
            server, lambda text: _with_list(text, words), f"from {project.package} import views, or no lists=[…]"
        )
    draft.add(f"tests/test_{name.snake}.py", part(f"{kind}/test.py", words))
    return draft.write()


def _begun(folder: Path, what: str, given: str) -> tuple[Project, Draft, Name]:
    if problems := list(problems_of(what, given)):
        raise CannotWrite(*problems)
    return Project(folder), Draft(folder), name_of(given)


def _must_begin(subject: Subject) -> None:
    if not subject.begun:
        raise CannotWrite(f"{subject.module} has no event that begins a {subject.name}: @change({subject.constant})")


def _words(project: Project, name: Name, subject: Subject) -> dict[str, str]:
    return {"package": project.package, "Name": name.camel, "name": name.snake, **subject.words}


def _rpc(draft: Draft, path: str, service: str, kind: str, words: Mapping[str, str]) -> None:
    """The RPC behind the others, its request and its response at the file's end."""
    _messages(draft, path, kind, words, [f"{words['Name']}Request", f"{words['Name']}Response"])
    rpc = part(f"{kind}/rpc.proto", words)
    draft.change(path, lambda text: _in_block(text, rf"^service {service} \{{\n", r"^\}", rpc), f"service {service}")


def _messages(draft: Draft, path: str, kind: str, words: Mapping[str, str], names: list[str]) -> None:
    # A name is taken in the whole package, whatever file of it has the message.
    for file in sorted((draft.folder / path).parent.glob("*.proto")):
        there = set(re.findall(r"^(?:message|enum|service) (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))
        draft.problems += [f"{it} is a name of {file.relative_to(draft.folder)} already" for it in names if it in there]
    messages = part(f"{kind}/messages.proto", words)
    draft.change(path, lambda text: f"{text.rstrip()}\n\n{messages}", "text")


def _function(draft: Draft, path: str, name: Name, text: str, *, before: str) -> None:
    """In front of the first line that matches, or at the end."""
    if name.snake in _bound(draft, path):
        draft.problems.append(f"{path} has `{name.snake}` already")

    def changed(module: str) -> str:
        found = re.search(before, module, re.MULTILINE)
        at = found.start() if found else len(module)
        head, tail = module[:at].rstrip(), module[at:]
        return f"{head}\n\n\n{text}" + (f"\n\n{tail}" if tail.strip() else "")

    draft.change(path, changed, "text")


def _bound(draft: Draft, path: str) -> set[str]:
    """The names that a module has."""
    try:
        tree = ast.parse(draft.text(path))
    except SyntaxError as error:
        draft.problems.append(f"{path} is no Python: {error}")
        return set()
    found = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {it.asname or it.name for it in names}
            case ast.Assign(targets=targets):
                found |= {it.id for it in targets if isinstance(it, ast.Name)}
    return found


def _in_block(text: str, begins: str, ends: str, line: str) -> str | None:
    """With a line more at the end of a block."""
    begin = re.search(begins, text, re.MULTILINE)
    end = re.compile(ends, re.MULTILINE).search(text, begin.end()) if begin else None
    return text[: end.start()] + line + text[end.start() :] if end else None


def _with_kind(text: str, words: Mapping[str, str]) -> str | None:
    """With a field for the event, of the number behind all that the message has or had."""
    block = re.search(r"^message Event \{\n.*?^\}", text, re.MULTILINE | re.DOTALL)
    if block is None:
        return None
    numbers = re.findall(r"\b\d+\b", re.sub(r"//.*", "", block[0]))
    line = part("event/kind.proto", {**words, "number": str(1 + max(map(int, numbers), default=0))})
    return _in_block(text, r"^message Event \{\n(?:.*\n)*?  oneof kind \{\n", r"^  \}", line)


def _logged(text: str) -> str | None:
    """Rows that can be watched are in the change log."""
    if re.search(r"^    logged=True,$", text, re.MULTILINE):
        return text
    return _in_block(text, r"^PROJECTION = Projection\(\n", r"^\)", "    logged=True,\n")


def _with_list(text: str, words: Mapping[str, str]) -> str | None:
    """With the list among the query server's, and its import."""
    package, name = words["package"], words["name"]
    first = re.search(rf"^from {package} import .*\n", text, re.MULTILINE)
    lists = re.search(r"^( +lists=\[)(.*)(\],)$", text, re.MULTILINE)
    if first is None or lists is None:
        return None
    line = f"{lists[1]}{', '.join(filter(None, [lists[2], name]))}{lists[3]}"
    text = text[: lists.start()] + line + text[lists.end() :]
    return text[: first.end()] + f"from {package}.{name} import {name}\n" + text[first.end() :]
