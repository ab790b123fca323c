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


def _folds(projection: Any, *_others: Any) -> str:
    return f"folds {projection.view}"


OF: dict[str, tuple[Step, ...]] = {
    "command_server": (
        Step("tandem.runtime.worker", "Worker._take", "waits for commands and its turn"),
        Step("tandem.commands.executor", "find_receipts", "reads requests, asks for rows"),
        Step("tandem.commands.executor", "decide_batch", "decides", before="waits for rows"),
        Step("tandem.commands.executor", "append", "makes rows, seals events, sends"),
        Step("tandem.commands.executor", "_Storing._store_once", COMMITS),
        Step("tandem.commands.executor", "_Storing.answer", ANSWERS),
    ),
    "projector": (
        Step("tandem.projection.watched_feed", "WatchedFeed.wait", "the projector wakes"),
        Step("tandem.projection.watched_feed", "WatchedFeed.events", "reads events", before=""),
        Step("tandem.projection.session", "select_rows", "loads rows", before="opens events, finds what they change"),
        Step("tandem.projection.pipeline", "EventBatch.__init__", "puts rows together"),
        Step("tandem.projection.pipeline", "fold_steps", _folds, before=""),
        Step("tandem.projection.pipeline", "EventBatch.fold", "puts changes together"),
        Step("tandem.projection.session", "move_views", STORES, before=""),
        Step("tandem.projection.session", "CacheWriter.write", "fills the cache"),
        # The keeper does it too, once a second, and what it waits between is no step.
        Step("tandem.projection.session", "Session._announce", "announces", before=""),
    ),
    "query_server": (
        Step("tandem.queries.freshness", "Freshness.apply_announcement", "the query server learns of it"),
        Step("tandem.queries.rows", "_CachedRows.__call__", "reads the row"),
    ),
}
