"""The thread that projects: it begins a session on the read database, and another when that one ends."""

import asyncio
import threading

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from projector.apply import Deposed
from projector.cache_writer import CacheWriter
from projector.feed import Feed, first_line
from projector.projections.catalogue import PROJECTIONS
from projector.session import FeedChanged, Session, ViewState
from projector.settings import ChangeLogSettings, FollowSettings
from tandem.runtime.telemetry import log

# The pause before a session is begun anew after the read database went away.
_RECONNECT_SECONDS = 0.5


class Loop:
    """A Component. `states` may be read from any thread: each state is replaced as a whole."""

    def __init__(
        self, feed: Feed, read: Engine, cache: CacheWriter, follow: FollowSettings, change_log: ChangeLogSettings
    ) -> None:
        """read: an engine in autocommit mode."""
        self.feed = feed
        self._read = read
        self._cache = cache
        self._follow = follow
        self._change_log = change_log
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.states: dict[str, ViewState] = {view: ViewState() for view in PROJECTIONS}

    async def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Finishes the batch under way and leaves the cache to the next projector."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        self._cache.start()
        away = ""
        while not self._stop.is_set():
            try:
                with self._read.connect() as connection:
                    # Closed at the end and not pooled: the locks are to end with the session.
                    connection.detach()
                    session = Session(
                        connection,
                        feed=self.feed,
                        cache=self._cache,
                        follow=self._follow,
                        change_log=self._change_log,
                        states=self.states,
                        stop=self._stop,
                    )
                    session.begin()
                    if away:
                        log.info("the read database is back")
                        away = ""
                    session.run()
            except (Deposed, FeedChanged) as error:
                log.warning("starting over", error=str(error))
            except (SQLAlchemyError, psycopg.Error) as error:
                # Said once for each reason, not once for each attempt.
                if first_line(error) != away:
                    away = first_line(error)
                    log.warning("the read database is away", error=away)
                self._stop.wait(_RECONNECT_SECONDS)
            except Exception:
                log.exception("the projector failed, starting over")
                self._stop.wait(_RECONNECT_SECONDS)
            finally:
                # The connection took the locks with it.
                for view, state in self.states.items():
                    self.states[view] = ViewState(position=state.position)
                self._cache.epochs.clear()
        self._cache.stop()
        self.feed.close()
        self._read.dispose()
