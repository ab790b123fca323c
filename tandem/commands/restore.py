"""After the write database was restored from a backup: who was erased since is erased again, and a new epoch begins."""

import asyncio
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import Message

from tandem.commands.executor import Executor
from tandem.commands.ledger import Kind, Ledger, LedgerDamaged, find_kept, read_ledger
from tandem.commands.maintenance import begin_epoch
from tandem.runtime.actions import ActionRefused
from tandem.runtime.call import LocalCall, Method
from tandem.runtime.database import transaction
from tandem.runtime.errors import TandemError
from tandem.runtime.settings import DatabaseSettings

# Erasures at once, each a command; progress is said after so many.
_AT_ONCE = 100
# For one of them. Somebody with a million orders takes half a minute.
_SECONDS = 3600.0
_ACTOR = "restore"


class Restored(NamedTuple):
    """epoch: the new one. listed: erasures in the ledgers. erased: those that had to be done again."""

    epoch: uuid.UUID
    listed: int
    erased: int


def restore(
    database: DatabaseSettings,
    new_executor: Callable[[], Executor],
    erase: Callable[[str], Message],
    ledgers: Sequence[Path],
    ledger: Ledger,
) -> Restored:
    """Makes a restored database the one that holds. It may be run again after it failed, or was done.

    Erasures come first: views of a history that is gone stand still until the epoch begins, so no reader is shown who
    was erased. new_executor: on that database. erase: the command that erases a data subject. ledgers: what was
    written down. ledger: gets the epoch.

    Raises ActionRefused and DBAPIError.
    """
    entries = set()
    for path in ledgers:
        try:
            entries |= read_ledger(path)
        except OSError as error:
            raise ActionRefused(f"the ledger {path} cannot be read: {error.strerror}") from error
        except LedgerDamaged as error:
            raise ActionRefused(
                f"{error}; take another command server's ledger, or take these lines out if you know what they said"
            ) from error
    erased = [it.id for it in entries if it.kind is Kind.ERASED]
    ended = [it.id for it in entries if it.kind is Kind.EPOCH]
    with transaction(database, "tandem-command-restore") as connection:
        kept = find_kept(connection, erased)
    asyncio.run(_erase_all(new_executor(), erase, kept))
    with transaction(database, "tandem-command-restore") as connection:
        if left := find_kept(connection, kept):
            raise ActionRefused(f"{len(left)} data subjects are not erased, {left[0]} the first")
        epoch = begin_epoch(connection, ended)
    if ledger.is_kept and not ledger.add(Kind.EPOCH, [epoch]):
        raise ActionRefused(f"the feed's epoch is {epoch}, and the ledger cannot be written")
    return Restored(epoch, len(erased), len(kept))


async def _erase_all(executor: Executor, erase: Callable[[str], Message], ids: Sequence[uuid.UUID]) -> None:
    await executor.start()
    try:
        done = 0
        for first in range(0, len(ids), _AT_ONCE):
            some = ids[first : first + _AT_ONCE]
            await asyncio.gather(*(_erase(executor, erase(str(it)), it) for it in some))
            done += len(some)
            sys.stderr.write(f"erased again: {done} of {len(ids)}\n")
    finally:
        await executor.stop()


async def _erase(executor: Executor, request: Message, subject: uuid.UUID) -> None:
    method = Method(request.DESCRIPTOR.name.removesuffix("Request"), type(request))
    call = LocalCall(method, request, seconds=_SECONDS, metadata=(("tandem-actor", _ACTOR),))
    executor.put_all([call])
    try:
        await asyncio.wrap_future(call.future)
    except TandemError as error:
        raise ActionRefused(f"{subject} cannot be erased: {error}") from error
