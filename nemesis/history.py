"""What clients did and what they got: each call with its times, on one clock, in the order in which calls ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tandem.feed.token import Token

State = tuple[int, ...]
"""What is compared of a thing: its version first, then what else a view shows of it."""


class Subject(NamedTuple):
    """A thing that commands change and queries show."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class Receipt(NamedTuple):
    """What a client got for a command that is stored. token: of the receipt."""

    position: int
    version: int
    token: Token
    replayed: bool


class Write(NamedTuple):
    """A call of a command. With neither receipt nor refusal its outcome is unknown.

    expected: how many events it makes. refusal: the words of an error that is given again for the same request id.
    """

    client: str
    request_id: str
    subject: Subject
    invoked: float
    completed: float
    receipt: Receipt | None = None
    refusal: str = ""
    expected: int = 1


class Read(NamedTuple):
    """A query that was answered, of one thing. state: None where it is not there.

    needed: the tokens that the answer had to include. as_of: None where the answer does not say.
    """

    client: str
    subject: Subject
    invoked: float
    completed: float
    state: State | None
    as_of: Token | None
    needed: tuple[Token, ...] = ()
    fully_consistent: bool = False


class Shown(NamedTuple):
    """A message of a watch. state: None in a heartbeat."""

    at: float
    as_of: Token
    state: State | None


class Followed(NamedTuple):
    """A message of the feed. events: their positions and the request ids of their commands."""

    at: float
    cursor: Token
    events: tuple[tuple[int, str], ...]


class Stored(NamedTuple):
    """An event of the feed, as the write database has it. states: of the things that it changes, after it."""

    position: int
    request_id: str
    mark: int
    states: Mapping[Subject, State]


@dataclass
class History:
    """shown: by watcher, over all its streams. followed: by follower, the same. unexpected: errors that no caller may
    get. settled: all was quiet at the end, and watchers and followers had their time.
    """

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    watched: dict[str, Subject] = field(default_factory=dict)
    shown: dict[str, list[Shown]] = field(default_factory=dict)
    followed: dict[str, list[Followed]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    settled: bool = False
