"""Reactions at work: a thread follows the feed and gives commands, another posts webhooks."""

import asyncio
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.archive import Archive
from tandem.feed.table import CHANNEL
from tandem.reactions.doing import Commands
from tandem.reactions.following import Follower
from tandem.reactions.reaction import Reaction
from tandem.reactions.settings import ReactionSettings, WebhookSettings
from tandem.reactions.standing import Standing, find_standings, show
from tandem.reactions.tasks import purge_tasks
from tandem.reactions.webhooks import Webhooks
from tandem.runtime.call import Stage
from tandem.runtime.clock import Clock, agreed_time, database_time, utc_now
from tandem.runtime.database import create_database_engine, first_line
from tandem.runtime.listener import Listener
from tandem.runtime.settings import DatabaseSettings, SettingsError
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log, note_success

JOB = "reactions"
# Between two looks, however many events come. Each is some 16 round trips, and commands wait for the interpreter: ten a
# second took a fifth of the processor's time of all orders.
_PAUSE_SECONDS = 0.3
# How soon a stop is noticed by who waits for events.
_LOOK_UP_SECONDS = 0.25
_SHOW_SECONDS = 5.0
MOST_PARKED = 10_000
"""Things that a reaction has parked when it takes in no more events; within some seconds."""
_PURGE_SECONDS = 60.0
_PURGED_AT_ONCE = 5_000


class Reactions:
    """A Component. Any number of command servers may run it: each thing is done once, whoever does it."""

    def __init__(
        self,
        database: DatabaseSettings,
        executor: Stage,
        reactions: Sequence[Reaction],
        settings: ReactionSettings,
        *,
        webhook: WebhookSettings,
        archive: Archive,
        keep: timedelta,
        clock: Clock = utc_now,
    ) -> None:
        """webhook: without a URL nothing is posted, and what is to be posted waits. archive: where the oldest events
        may be. keep: for how long it is remembered what was done. clock: this server's.

        Raises SettingsError.
        """
        self.reactions = reactions
        self._engine = create_database_engine(
            database, name="tandem-reactions", pool_size=3, by_key=True, durable=True, idles=True
        )
        self._listener = Listener(database, CHANNEL, "tandem-reactions-listener")
        self._settings = settings
        self.keep = keep
        # What is due is due by both clocks: the rule that is asked goes by this server's.
        on = [it for it in reactions if it.is_on]
        self.follower = Follower(
            self._engine, on, archive, lambda connection: min(agreed_time(connection, clock), clock())
        )
        self.commands = Commands(self._engine, executor, on, settings)
        self.webhooks = Webhooks(self._engine, on, webhook) if webhook.url else None
        self.problems: dict[str, str] = {}
        """Why a reaction does not go on, by its name, as this server saw it last."""
        self._stop = threading.Event()
        self._posts = threading.Event()
        self._threads = [SupervisedThread(JOB, self._run)]
        if self.webhooks is not None:
            self._threads.append(SupervisedThread("webhooks", self._run_webhooks))
        self._begun = False
        self._show_at = self._purge_at = 0.0
        self._listens = True

    async def start(self) -> None:
        if self.reactions:
            note_success(JOB)
            for it in self._threads:
                it.start()

    async def stop(self) -> None:
        """Waits for what is under way."""
        self._stop.set()
        self._posts.set()
        for it in self._threads:
            await asyncio.to_thread(it.join)
        self._listener.close()
        self._engine.dispose()

    def standings(self) -> list[Standing]:
        """How each reaction is. Raises SQLAlchemyError."""
        with self._engine.connect() as connection:
            return self.standings_in(connection)

    def standings_in(self, connection: Connection) -> list[Standing]:
        """As `standings`, on a connection of the caller's."""
        off = {it.name for it in self.reactions if not it.is_on}
        found = find_standings(connection, self.reactions)
        # Nobody waits for what is off: it is not late.
        return [
            it._replace(behind_seconds=0.0, overdue_seconds=0.0)
            if it.name in off
            else it._replace(problem=self.problems.get(it.name, ""))
            for it in found
        ]

    def _run(self) -> None:
        problem = ""
        while not self._stop.is_set():
            try:
                self.work()
                problem = ""
            except SQLAlchemyError as error:
                # The database is away or busy, or not migrated yet.
                said = first_line(error)
                if said != problem:
                    log.warning("reactions wait for the write database", error=said)
                problem = said
            except Exception:
                # A bug, of ours or of what a reaction begins with. Commands are stored nevertheless; alerts say it.
                log.exception("reactions failed, will be tried again")
            self._wait()

    def work(self) -> None:
        """Takes in what is there and does what is due, until there is no more. Raises SQLAlchemyError."""
        if not self._begun:
            self.follower.begin()
            self._begun = True
        while not self._stop.is_set():
            followed = self.follower.look()
            self._posts.set()
            self._note(followed.problems)
            if not self.commands.give_due(followed.caught_up) and not followed.is_behind:
                break
        if time.monotonic() >= self._show_at:
            self.show()
            self._show_at = time.monotonic() + _SHOW_SECONDS
        if time.monotonic() >= self._purge_at:
            self._purge()
            self._purge_at = time.monotonic() + _PURGE_SECONDS
        if not self.problems:
            note_success(JOB)

    def show(self) -> None:
        """Says in the metrics how the reactions are. Raises SQLAlchemyError."""
        standings = self.standings()
        show(standings)
        # A function that fails for every event would fill the table.
        self.follower.full = {it.name for it in standings if it.parked >= MOST_PARKED}

    def _note(self, problems: dict[str, str]) -> None:
        for name, problem in problems.items():
            if self.problems.get(name) != problem:
                log.error("a reaction cannot go on", reaction=name, problem=problem)
        self.problems = problems

    def _purge(self) -> None:
        purged = _PURGED_AT_ONCE
        while purged == _PURGED_AT_ONCE and not self._stop.is_set():
            with self._engine.begin() as connection:
                purged = purge_tasks(connection, database_time(connection) - self.keep, _PURGED_AT_ONCE)

    def _wait(self) -> None:
        """Until there may be more events, or for poll_seconds."""
        if self._stop.wait(_PAUSE_SECONDS):
            return
        until = time.monotonic() + self._settings.poll_seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            try:
                if self._listener.wait(min(left, _LOOK_UP_SECONDS)):
                    return
                self._listens = True
            except (psycopg.Error, SettingsError) as error:
                if self._listens:
                    log.warning("reactions cannot listen to the feed", error=first_line(error))
                self._listens = False
                self._stop.wait(left)

    def _run_webhooks(self) -> None:
        assert self.webhooks is not None
        while not self._stop.is_set():
            self._posts.clear()
            try:
                while self.webhooks.post_due() and not self._stop.is_set():
                    pass
            except SQLAlchemyError as error:
                log.warning("webhooks wait for the write database", error=first_line(error))
            except Exception:
                log.exception("webhooks failed, will be tried again")
            # Otherwise what a stop has set may have been cleared above.
            if not self._stop.is_set():
                self._posts.wait(self._settings.poll_seconds)
