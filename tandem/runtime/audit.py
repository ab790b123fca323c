"""Lines for the audit in the log: who was refused what, and what operators have called."""

from google.protobuf.message import Message

from tandem.runtime.call import Context
from tandem.runtime.errors import NotPermitted, TandemError
from tandem.runtime.identity import Identity
from tandem.runtime.telemetry import log

# Of a request, as a text.
_LONGEST = 500


def refused(call: Context, rpc: str, error: TandemError, identity: Identity | None = None) -> None:
    """identity: who calls, where the call does not say it yet."""
    log.warning(
        "audit: refused",
        rpc=rpc,
        subject=_subject(identity or call.identity),
        reason=error.reason,
        problem=error.message,
        reference=call.reference(),
    )


def somebody_elses(call: Context, rpc: str, what: str) -> None:
    """It is there, and the caller is told that it is not."""
    refused(call, rpc, NotPermitted(f"{what} is somebody else's"))


def called(call: Context, rpc: str, request: Message) -> None:
    """request: an operator's, of names and ids."""
    text = str(request).replace("\n", " ").strip()
    log.info(
        "audit: called", rpc=rpc, subject=_subject(call.identity), request=text[:_LONGEST], reference=call.reference()
    )


def _subject(identity: Identity | None) -> str | None:
    return None if identity is None else identity.subject
