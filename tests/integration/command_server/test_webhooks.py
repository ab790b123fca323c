"""Webhooks: signed, tried again whoever is alive, parked in the end, and done once as the receiver counts them."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from command_server.reactions import STOCK_LOW, reactions
from command_server.settings import Settings, StockSettings
from commerce.command.v1 import command_service_pb2 as commands
from tandem.feed.archive import Archive
from tandem.feed.reader import recorded_at
from tandem.reactions.running import Reactions
from tandem.reactions.settings import ReactionSettings, WebhookSettings
from tandem.reactions.standing import Redriven, list_parked, redrive, replay
from tandem.reactions.webhooks import sign
from tandem.runtime.settings import SettingsError
from tandem.testing.stack import until
from tests.integration.command_server.conftest import Commands, WriteDatabase, submit
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.issuer import Certificates

SECRETS = [b"0123456789abcdef01234567", b"another secret, of 32 characters"]
KEEP = timedelta(days=7)


class Receiver(ThreadingHTTPServer):
    """answers: the status codes of the next requests, then 204; None leaves one without an answer, and 100 goes on for
    ever.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.answers: list[int | None] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.left = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hooks"


class _Request(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
        answer = self.server.answers.pop(0) if self.server.answers else 204
        if answer is None:
            self.server.left.wait(20)
            return
        with suppress(OSError):
            while answer == 100 and not self.server.left.wait(0.05):
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.send_response(answer)
        if answer == 302:
            self.send_header("location", self.server.url)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    it = Receiver()
    yield it
    it.left.set()
    it.shutdown()
    it.server_close()


@pytest.fixture
def secret_files(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"secret-{number}" for number in range(len(SECRETS))]
    for file, secret in zip(files, SECRETS, strict=True):
        file.write_text(f"whsec_{base64.b64encode(secret).decode()}\n")
    return files


MakeTelling = Callable[..., Reactions]


@pytest.fixture
async def telling(
    commands_on: Commands, database: WriteDatabase, receiver: Receiver, secret_files: list[Path]
) -> AsyncIterator[MakeTelling]:
    """A server's reactions, which tell of a product with fewer than 10 units left."""
    executor = await commands_on.executor()
    await submit(executor, register_customer())
    await submit(executor, add_product(1, stock=11))
    made: list[Reactions] = []

    def make(url: str | None = None, **changes: Any) -> Reactions:
        webhook = WebhookSettings(
            url=receiver.url if url is None else url,
            secret_files=secret_files,
            **{"timeout_seconds": 10, "first_retry_seconds": 100, "max_attempts": 3, **changes},
        )
        settings = Settings(database=database.settings, stock=StockSettings(low=10), webhook=webhook)
        made.append(
            Reactions(
                database.settings,
                executor,
                reactions(settings),
                ReactionSettings(poll_seconds=0.05),
                webhook=webhook,
                archive=Archive(None),
                keep=KEEP,
            )
        )
        return made[-1]

    first = make()
    await asyncio.to_thread(first.work)
    await submit(executor, place_order(1, lines={1: 2}))
    await asyncio.to_thread(first.work)
    yield make
    for it in made:
        await it.stop()


async def post(it: Reactions) -> None:
    """All that is due."""
    assert it.webhooks is not None
    while await asyncio.to_thread(it.webhooks.post_due):
        pass


def make_due(database: WriteDatabase) -> None:
    """As if the time until the next attempt had passed, or the one who had begun it were dead for long."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE tandem_write.reaction_task SET at = now() WHERE done_at IS NULL"))


def task(database: WriteDatabase) -> Any:
    with database.engine.connect() as connection:
        return connection.execute(
            text(
                "SELECT attempts, error, outcome, parked_at IS NOT NULL AS parked, request_id,"
                " extract(epoch FROM at - now()) AS again_in FROM tandem_write.reaction_task WHERE kind = 'POST'"
            )
        ).one()


def verified(headers: dict[str, str], body: bytes, secret: bytes) -> Any:
    """The message, by a receiver that has one of the secrets; as https://www.standardwebhooks.com describes it."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert any(hmac.compare_digest(it, f"v1,{expected}") for it in headers["webhook-signature"].split(" "))
    return json.loads(body)


async def test_a_receiver_is_told_once_and_verifies_it_by_either_secret(
    telling: MakeTelling, database: WriteDatabase, receiver: Receiver
) -> None:
    one, two = telling(), telling()
    await asyncio.gather(post(one), post(two))
    [(headers, body)] = receiver.requests
    for secret in SECRETS:
        message = verified(headers, body, secret)
    placed = next(it for it in database.feed() if it.kind == "order_placed")
    assert message == {
        "type": STOCK_LOW,
        "timestamp": message["timestamp"],
        "data": {"product_id": identity("product", 1), "product_name": "Product 1", "stock": 9},
    }
    with database.engine.connect() as connection:
        stored_at = recorded_at(connection, placed.position, Archive(None))
    assert datetime.fromisoformat(message["timestamp"]) == stored_at
    assert headers["webhook-id"] == f"msg_{task(database).request_id.hex}"
    assert headers["content-type"] == "application/json"
    assert task(database).outcome == "done: HTTP 204"


@pytest.mark.parametrize("failure", [500, 302, None, "away"])
async def test_what_is_not_taken_is_tried_again_later_and_later_by_whoever_is_there_and_parked_in_the_end(
    telling: MakeTelling, database: WriteDatabase, receiver: Receiver, failure: Any
) -> None:
    away = "http://127.0.0.1:9/hooks" if failure == "away" else None
    seconds = 0.5 if failure is None else 10
    receiver.answers = [] if away else [failure] * 3
    waits = []
    for attempt in (1, 2, 3):
        await post(telling(away, timeout_seconds=seconds))
        found = task(database)
        assert (found.attempts, found.parked) == (attempt, attempt == 3)
        assert found.error
        waits.append(round(float(found.again_in), -2))
        make_due(database)
    assert waits[:2] == [100, 300]
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == (0 if away else 1)
    # A dead letter: nobody tries it, until an operator sends it again.
    it = telling()
    await post(it)
    reaction = next(it for it in it.reactions if it.name == "low_stock")
    with database.engine.begin() as connection:
        [parked] = list_parked(connection, ["low_stock"], 10)
        assert (parked.kind, parked.type, parked.key) == ("POST", STOCK_LOW, identity("product", 1))
        assert redrive(connection, reaction, Archive(None), None) == Redriven(1, 0, None)
    await post(it)
    assert task(database).outcome == "done: HTTP 204"


async def test_a_receiver_that_has_gone_is_not_asked_again(
    telling: MakeTelling, database: WriteDatabase, receiver: Receiver
) -> None:
    receiver.answers = [410]
    await post(telling())
    assert task(database).parked
    assert task(database).error == "HTTP 410: the receiver wants no more"


async def test_one_that_dies_while_it_posts_is_followed_by_another_and_the_receiver_knows_the_message_again(
    telling: MakeTelling, database: WriteDatabase, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    dying = telling()
    assert dying.webhooks is not None

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("tandem.reactions.webhooks.settle", die)
    with pytest.raises(Killed):
        dying.webhooks.post_due()
    monkeypatch.undo()
    other = telling()
    await post(other)
    assert len(receiver.requests) == 1, "nobody else has it for as long as an attempt may take"
    make_due(database)
    await post(other)
    [(first, one), (second, two)] = receiver.requests
    assert (first["webhook-id"], one) == (second["webhook-id"], two)
    assert task(database).outcome == "done: HTTP 204"


async def test_a_receiver_shows_a_certificate_that_is_its_own(
    telling: MakeTelling, database: WriteDatabase, receiver: Receiver, tmp_path: Path
) -> None:
    own = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.settings["certificate_file"], own.settings["key_file"])
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    url = receiver.url.replace("http:", "https:")
    # To the system it is nobody's.
    await post(telling(url))
    assert "certificate verify failed" in task(database).error
    assert receiver.requests == []
    make_due(database)
    await post(telling(url, ca_file=own.client_ca_file))
    assert task(database).outcome == "done: HTTP 204"


async def test_a_replay_tells_nobody_twice(telling: MakeTelling, database: WriteDatabase, receiver: Receiver) -> None:
    it = telling()
    await post(it)
    with database.engine.begin() as connection:
        for reaction in it.reactions:
            replay(connection, reaction, Archive(None), 2, KEEP)
    await asyncio.to_thread(it.work)
    await post(it)
    assert len(receiver.requests) == 1


async def test_while_there_is_no_receiver_an_operator_sees_what_waits_and_passes_it_over(
    telling: MakeTelling, database: WriteDatabase, receiver: Receiver, commands_on: Commands
) -> None:
    off = telling("")
    executor = await commands_on.executor()
    adjust = commands.AdjustStockRequest(product_id=identity("product", 1), delta=5)
    await submit(executor, adjust)
    adjust.delta = -6
    await submit(executor, adjust)
    await asyncio.to_thread(off.work)
    head = len(database.feed())
    [standing] = [it for it in off.standings() if it.name == "low_stock"]
    assert (standing.position, standing.waiting, standing.behind_seconds, standing.overdue_seconds) == (3, 1, 0, 0)
    [reaction] = [it for it in off.reactions if it.name == "low_stock"]
    with database.engine.begin() as connection:
        replay(connection, reaction, Archive(None), head, KEEP)
    on = telling()
    await asyncio.to_thread(on.work)
    await post(on)
    assert len(receiver.requests) == 1, "of the order alone, which was taken in before"


async def test_a_slow_receiver_holds_no_command_up(
    telling: MakeTelling, database: WriteDatabase, receiver: Receiver, commands_on: Commands
) -> None:
    receiver.answers = [None]
    it = telling(timeout_seconds=30)
    await it.start()

    async def asked() -> bool:
        return len(receiver.requests) == 1

    await until(asked, "the receiver is asked")
    executor = await commands_on.executor()
    await submit(executor, commands.AdjustStockRequest(product_id=identity("product", 1), delta=-1))
    head = len(database.feed())

    async def followed() -> bool:
        return all(standing.position == head for standing in it.standings())

    await until(followed, "the reactions have followed")
    receiver.left.set()


async def test_a_receiver_that_never_ends_its_answer_is_given_up_and_holds_up_no_other_message(
    telling: MakeTelling, database: WriteDatabase, receiver: Receiver, commands_on: Commands
) -> None:
    executor = await commands_on.executor()
    await submit(executor, add_product(2, stock=11))
    await submit(executor, place_order(2, lines={2: 2}))
    it = telling(timeout_seconds=2)
    await asyncio.to_thread(it.work)
    receiver.answers = [100]
    outcomes = "SELECT string_agg(outcome || error, ',' ORDER BY done_at NULLS LAST) FROM tandem_write.reaction_task"
    ended = asyncio.create_task(post(it))

    def found() -> str:
        with database.engine.connect() as connection:
            return str(connection.execute(text(f"{outcomes} WHERE kind = 'POST'")).scalar_one())

    async def other_is_done() -> bool:
        return found() == "done: HTTP 204,"

    await until(other_is_done, "the other message is settled while the first is under way")
    await asyncio.wait_for(ended, 20)
    assert found() == "done: HTTP 204,there was no answer in time"

    async def none_is_left() -> bool:
        return all(thread.name != "webhook" for thread in threading.enumerate())

    await until(none_is_left, "its connection was shut")


async def test_messages_that_are_under_way_when_the_database_breaks_are_given_up_with_the_one_that_is_settled(
    telling: MakeTelling, receiver: Receiver, commands_on: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = await commands_on.executor()
    await submit(executor, add_product(2, stock=11))
    await submit(executor, place_order(2, lines={2: 2}))
    it = telling(timeout_seconds=30)
    await asyncio.to_thread(it.work)
    receiver.answers = [204, 100]

    def fail(*_: object) -> None:
        raise OperationalError("settle", None, ConnectionError("the database is gone"))

    monkeypatch.setattr("tandem.reactions.webhooks.settle", fail)
    with pytest.raises(OperationalError):
        await post(it)

    async def none_is_left() -> bool:
        return all(thread.name != "webhook" for thread in threading.enumerate())

    await until(none_is_left, "the other one's connection is shut", 20)


async def test_an_error_that_nobody_expected_of_one_message_leaves_none_unsettled(
    telling: MakeTelling, database: WriteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tandem.reactions.webhooks.socket.create_connection", broken)
    await post(telling())
    assert task(database).error == "ZeroDivisionError('a bug')"


async def test_a_secret_that_cannot_be_read_any_more_is_waited_for(
    telling: MakeTelling, database: WriteDatabase, receiver: Receiver, secret_files: list[Path]
) -> None:
    it = telling()
    kept = secret_files[0].read_text()
    secret_files[0].write_text("no secret")
    await post(it)
    assert "must hold whsec_" in task(database).error
    secret_files[0].write_text(kept)
    make_due(database)
    await post(it)
    assert task(database).outcome == "done: HTTP 204"
    secret_files[0].unlink()
    with pytest.raises(SettingsError, match="secret_files"):
        telling()


def test_a_signature_is_that_of_the_standard() -> None:
    """The example of its specification's libraries."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    signature = sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, [secret])
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": "ftp://host"}, "must look like"),
        ({"url": "https://"}, "must look like"),
        ({"max_attempts": 0}, "max_attempts"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        WebhookSettings(**settings)
