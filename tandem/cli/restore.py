"""After a restore of the write database: its side is set right, and the views are watched until they are."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from tandem.cli.child import StackError
from tandem.cli.services import run_action
from tandem.cli.status import Views, list_projections

_LOOK_SECONDS = 0.5
_ASK_SECONDS = 3.0
# A view that has not moved for so long does not move by itself.
_STALLED_SECONDS = 30.0


def set_right(modules: Mapping[str, str], ledgers: Sequence[Path]) -> None:
    """Migrates both databases, erases again who was erased since the backup, and begins a new epoch. Raises StackError.

    What the services say of it goes to this program's output.
    """
    for section, action in (("command", "migrate"), ("projector", "migrate"), ("command", "restore")):
        files = [str(it) for it in ledgers] if action == "restore" else []
        if run_action(modules[section], action, *files).returncode != 0:
            raise StackError(f"{modules[section]} {action} failed; mend what it says, and run this again")


def watch_views(projections: ServiceDescriptor, channel: grpc.Channel, say: Callable[[str], None]) -> None:
    """Until all views have all events of the feed that is there. Raises StackError when they do not get on."""
    before: Views | None = None
    moved_at = time.monotonic()
    while True:
        try:
            now = list_projections(projections, channel, _ASK_SECONDS)
        except grpc.RpcError as error:
            raise StackError(
                f"the projector does not say how far the views are ({error.code().name}): they are set right as soon as"
                " projectors run; see `tandem status`"
            ) from None
        if now != before:
            before, moved_at = now, time.monotonic()
            say(_in_words(now))
        if now.views and not any(it.error or it.lag_events for it in now.views):
            return
        if time.monotonic() - moved_at > _STALLED_SECONDS:
            wrong = [f"{it.name} ({it.error or 'does not move'})" for it in now.views if it.error or it.lag_events]
            raise StackError(f"the views do not get on: {'; '.join(wrong) or 'there are none'}")
        time.sleep(_LOOK_SECONDS)


def _in_words(now: Views) -> str:
    behind = [it for it in now.views if it.error or it.lag_events]
    if not behind:
        return f"all views have all {now.feed_head:,} events"
    last = max(behind, key=lambda it: it.lag_events)
    return f"{len(behind)} views are behind, {last.name} {last.lag_events:,} of {now.feed_head:,} events"
