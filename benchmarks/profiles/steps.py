"""The steps of each service that are noted: functions, as the modules that call them have them."""

from collections.abc import Callable
from typing import Any, NamedTuple

COMMITS = "commits"
ANSWERS = "answers"
STORES = "stores"


class Step(NamedTuple):
    """function: in `module`, "Class.method" for a method.

    after: what has been done when it returns, or a function of its arguments that says it. before: what has been done
    when it is called, empty for nothing that counts; None for no mark then.
    """

    module: str
    function: str
    after: str | Callable[..., str]
    before: str | None = None


def _folds(prepared: Any) -> str:
    return f"folds {prepared.view}"


OF: dict[str, tuple[Step, ...]] = {
    "command_server": (
        Step("command_server.executor", "_Turn.begin", "waits for its turn"),
        Step("command_server.executor", "take_together", "waits for commands"),
        Step("command_server.executor", "find_receipts", "asks for rows"),
        Step("command_server.executor", "decide_batch", "decides", before="waits for rows"),
        Step("command_server.executor", "append", "makes rows, seals events, sends"),
        Step("command_server.executor", "Executor._store_once", COMMITS),
        Step("command_server.executor", "Executor._answer", ANSWERS),
    ),
    "projector": (
        Step("projector.feed", "Listener.wait", "the projector wakes"),
        Step("projector.session", "read_events", "reads events", before=""),
        Step("projector.apply", "load", "loads rows", before="opens events, finds what they change"),
        Step("projector.session", "prepare", "puts rows together"),
        Step("projector.pipeline", "Prepared.fold", _folds, before=""),
        Step("projector.pipeline", "Batch.fold", "puts changes together"),
        Step("projector.session", "commit", STORES, before=""),
        Step("projector.session", "CacheWriter.write", "fills the cache"),
        Step("projector.session", "Session._announce", "announces"),
    ),
    "query_server": (
        Step("tandem.queries.freshness", "Freshness.apply_announcement", "the query server learns of it"),
        Step("tandem.queries.rows", "_CachedRows.__call__", "reads the row"),
    ),
}
