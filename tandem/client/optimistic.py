"""What a user sees of a change before it is stored, and what becomes of it.

`Optimistic` holds a view of something as it was last read, and the changes that are under way. What is to be shown is
the view with all these changes made to it. A change is seen at once, and stays when its command is stored. It goes when
a view that was read shows it, or when the command is refused; other changes under way stay.
"""

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from tandem.client.errors import CallFailed

V = TypeVar("V", bound=Message)
R = TypeVar("R")


@dataclass(eq=False)
class _Change(Generic[V]):
    """stored: the command is, and a view that is read from now on shows it."""

    expect: Callable[[V], object]
    stored: bool = False


class _Shown(Generic[V]):
    """The state of both kinds, for any number of threads."""

    def __init__(self, known: V, show: Callable[[V], object] | None) -> None:
        self._lock = threading.RLock()
        self._confirmed = known
        self._changes: list[_Change[V]] = []
        self._show = show or (lambda _: None)

    @property
    def confirmed(self) -> V:
        """The view as it was last read."""
        return self._confirmed

    @property
    def shown(self) -> V:
        """The view with every change that is under way: a copy."""
        with self._lock:
            view = type(self._confirmed)()
            view.CopyFrom(self._confirmed)
            for change in self._changes:
                change.expect(view)
            return view

    @property
    def pending(self) -> int:
        """How many changes the view that was read does not show yet."""
        return len(self._changes)

    @contextmanager
    def _expecting(self, expect: Callable[[V], object]) -> Iterator[None]:
        """Around the command: shows the change, and takes it back when the command fails."""
        change = _Change(expect)
        with self._lock:
            self._changes.append(change)
            self._show(self.shown)
        try:
            yield
        except BaseException:
            with self._lock:
                self._changes.remove(change)
                self._show(self.shown)
            raise
        change.stored = True

    def _stored(self) -> list[_Change[V]]:
        """What a read that begins now is going to show."""
        with self._lock:
            return [change for change in self._changes if change.stored]

    def _confirm(self, view: V, seen: list[_Change[V]]) -> None:
        with self._lock:
            self._changes = [change for change in self._changes if change not in seen]
            # Reads may end in another order than they began.
            if _version(view) >= _version(self._confirmed):
                self._confirmed = view
            self._show(self.shown)


class Optimistic(_Shown[V]):
    """For threads.

    >>> account = Optimistic(known, read=lambda: session.queries.GetAccount(get).account, show=draw)  # doctest: +SKIP
    >>> account.change(expect=as_closed, command=lambda: session.commands.CloseAccount(close))  # doctest: +SKIP
    """

    def __init__(self, known: V, *, read: Callable[[], V], show: Callable[[V], object] | None = None) -> None:
        """known: the view as it was last read; it is not changed. read: reads it again, in the session that sends the
        commands, so that it sees them. show: called with what is to be shown, whenever that changes.
        """
        super().__init__(known, show)
        self._read = read

    def change(self, expect: Callable[[V], object], command: Callable[[], R]) -> R:
        """Shows what is expected, sends the command, and shows the view that has it; returns the command's response.

        expect: makes of the view that it is given what the command will make of it; it may be called often, so it sets
            values rather than counts them up. command: sends it.

        Raises CallFailed when the command is refused, or nobody knows whether it is done; then the change is shown no
        longer. After DeadlineExceeded and Unavailable the same call may be made again: it is done once where its
        request is one of tandem.client.command's. When the command is stored and the view is not there in time, nothing
        is raised: what is expected is shown until a `refresh` succeeds.
        """
        with self._expecting(expect):
            response = command()
        with _later_if_need_be():
            self.refresh()
        return response

    def refresh(self) -> None:
        """Reads the view and shows it, with the changes whose commands are under way. Raises CallFailed."""
        seen = self._stored()
        self._confirm(self._read(), seen)


class AsyncOptimistic(_Shown[V]):
    """As Optimistic, for asyncio."""

    def __init__(
        self, known: V, *, read: Callable[[], Awaitable[V]], show: Callable[[V], object] | None = None
    ) -> None:
        super().__init__(known, show)
        self._read = read

    async def change(self, expect: Callable[[V], object], command: Callable[[], Awaitable[R]]) -> R:
        """As Optimistic.change. When the task is cancelled the change is shown no longer, though it may be done."""
        with self._expecting(expect):
            response = await command()
        with _later_if_need_be():
            await self.refresh()
        return response

    async def refresh(self) -> None:
        """As Optimistic.refresh."""
        seen = self._stored()
        self._confirm(await self._read(), seen)


@contextmanager
def _later_if_need_be() -> Iterator[None]:
    """Around a read that a `refresh` makes up for."""
    try:
        yield
    except CallFailed as error:
        if not error.transient:
            raise


def _version(view: Any) -> int:
    """A view's version counts the commands that changed the thing; it is 0 where a view has none."""
    return int(getattr(view, "version", 0))
