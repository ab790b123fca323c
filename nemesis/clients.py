"""Many clients that write, read, watch and follow at all servers, and record each call with what became of it."""

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from commerce.command.v1 import command_service_pb2 as commands
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.feed.v1.feed_service_pb2 import SubscribeRequest
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from nemesis.history import Followed, History, Read, Receipt, Shown, State, Subject, Write
from nemesis.shop import row_of
from tandem.feed.token import Token, decode_token, encode_token
from tandem.testing.stack import until
from tests.support.builders import add_product, address, identity, place_order, register_customer

CUSTOMERS, PRODUCTS, WATCHED = 4, 6, 4
SCARCE = 1
"""The product whose stock runs out, so that some orders are refused."""

_CALL_SECONDS = 3.0
PERSIST = 8.0
"""For how many seconds a client repeats a command that it has no answer to."""
_SILENT_SECONDS = 4.0
"""A stream that brings nothing for so long, with a heartbeat each second, is begun again elsewhere."""

# What a mesh would repeat, and what says nothing of the outcome.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)
_REFUSED = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
)
_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
]


class Addresses(NamedTuple):
    """Where clients reach the servers, "host:port" each."""

    commands: Sequence[str]
    projectors: Sequence[str]
    queries: Sequence[str]


class _Session:
    """What a client knows: the newest token that it was given."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.random = random.Random(f"{seed}/{name}")
        self.token: Token | None = None

    def learn(self, token: Token) -> None:
        if self.token is None or token.position > self.token.position:
            self.token = token


class Crowd:
    """The clients of one shop. For the event loop that runs when it is made; `close` it.

    pause: seconds between two calls of a client.
    """

    def __init__(self, addresses: Addresses, seed: int, *, clients: int = 8, pause: float = 0.02) -> None:
        self.history = History()
        self._seed = seed
        self._pause = pause
        self._sessions = [_Session(f"client {number}", seed) for number in range(1, clients + 1)]
        self._channels = {
            it: grpc.aio.insecure_channel(it, _CHANNEL)
            for it in (*addresses.commands, *addresses.projectors, *addresses.queries)
        }
        self._commands: list[Any] = [CommandServiceStub(self._channels[it]) for it in addresses.commands]
        self._feeds: list[Any] = [FeedServiceStub(self._channels[it]) for it in addresses.projectors]
        self._queries: list[Any] = [QueryServiceStub(self._channels[it]) for it in addresses.queries]
        self._numbers = itertools.count(1)
        self._orders: list[str] = []
        self._unanswered: dict[str, tuple[Message, Subject]] = {}
        self._acting: list[asyncio.Task[None]] = []
        self._streaming: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def command_servers(self) -> int:
        return len(self._commands)

    @property
    def query_servers(self) -> int:
        return len(self._queries)

    async def open(self) -> None:
        """Makes customers, products and the orders that are watched."""
        opener = _Session("opener", self._seed)
        requests: list[tuple[Message, Subject]] = [
            (register_customer(number), Subject("customer", identity("customer", number)))
            for number in range(1, CUSTOMERS + 1)
        ]
        for number in range(1, PRODUCTS + 1):
            added = add_product(number, stock=20 if number == SCARCE else 1_000_000)
            requests.append((added, Subject("product", added.product_id)))
        for request, subject in requests:
            assert await self.command(opener, request, subject), f"the shop cannot be opened: {request}"
        for _ in range(WATCHED):
            assert await self._place(opener), "an order that is to be watched cannot be placed"

    def begin(self, *, watchers: int = 6, followers: int = 2) -> None:
        """Lets everybody act until `settle`."""
        self._acting = [asyncio.create_task(self._act(it)) for it in self._sessions]
        for number in range(watchers):
            name, subject = f"watcher {number + 1}", Subject("order", self._orders[number % WATCHED])
            self.history.watched[name] = subject
            self.history.shown[name] = []
            self._streaming.append(asyncio.create_task(self._watch(_Session(name, self._seed), subject)))
        for number in range(followers):
            name = f"follower {number + 1}"
            self.history.followed[name] = []
            self._streaming.append(asyncio.create_task(self._follow(_Session(name, self._seed))))

    async def settle(self, head: Callable[[], Awaitable[int]], *, seconds: float = 30.0) -> None:
        """Ends the clients, finds out what became of each command, and waits until the streams have all of it.

        head: reads the feed's last position. seconds: until what is not there by then counts as missing.
        """
        self._stopping = True
        await asyncio.gather(*self._acting)
        asking = _Session("asking again", self._seed)
        end = time.monotonic() + seconds
        while self._unanswered and time.monotonic() < end:
            await asyncio.gather(*(self.command(asking, *it) for it in [*self._unanswered.values()][:50]))
        self.history.unexpected += [f"request {it} is not answered any more" for it in self._unanswered]
        last = await head()
        with contextlib.suppress(AssertionError):
            await until(partial(self._streams_are_at, last), "the streams are at the end", end - time.monotonic())
        self.history.settled = True
        await self._end(self._streaming)

    async def close(self) -> None:
        self._stopping = True
        await self._end([*self._acting, *self._streaming])
        for channel in self._channels.values():
            await channel.close()

    @staticmethod
    async def _end(tasks: Sequence["asyncio.Task[None]"]) -> None:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

    async def _streams_are_at(self, position: int) -> bool:
        shown = [messages[-1].as_of if messages else None for messages in self.history.shown.values()]
        followed = [messages[-1].cursor if messages else None for messages in self.history.followed.values()]
        return all(it is not None and it.position >= position for it in (*shown, *followed))

    # Clients

    async def _act(self, session: _Session) -> None:
        while not self._stopping:
            if session.random.random() < 0.4:
                await self._write(session)
            else:
                await self._read(session)
            await asyncio.sleep(self._pause)

    async def _write(self, session: _Session) -> None:
        chance, number = session.random.random(), next(self._numbers)
        if chance < 0.3:
            await self._place(session)
            return
        request_id, order = identity("request", number), self._some_order(session)
        request: Message
        subject = Subject("order", order)
        if chance < 0.6:
            street = address(street=f"Obere Str. {number}")
            request = commands.ChangeShippingAddressRequest(request_id=request_id, order_id=order, address=street)
        elif chance < 0.75:
            request = commands.PayOrderRequest(request_id=request_id, order_id=order)
        elif chance < 0.85:
            request = commands.CancelOrderRequest(request_id=request_id, order_id=order)
        elif chance < 0.9:
            customer = identity("customer", session.random.randint(1, CUSTOMERS))
            subject = Subject("customer", customer)
            request = commands.RenameCustomerRequest(request_id=request_id, customer_id=customer, name=f"No. {number}")
        else:
            product = identity("product", session.random.randint(1, PRODUCTS))
            subject = Subject("product", product)
            delta = session.random.choice((1, 2, 3))
            request = commands.AdjustStockRequest(request_id=request_id, product_id=product, delta=delta)
        await self.command(session, request, subject)

    async def _place(self, session: _Session) -> bool:
        number = next(self._numbers)
        products = session.random.sample(range(1, PRODUCTS + 1), session.random.randint(1, 2))
        request = place_order(
            number,
            customer=session.random.randint(1, CUSTOMERS),
            lines={it: session.random.randint(1, 5) for it in products} if self._orders else {PRODUCTS: 1},
        )
        placed = await self.command(session, request, Subject("order", request.order_id))
        if placed:
            self._orders.append(request.order_id)
        return placed

    def _some_order(self, session: _Session) -> str:
        """One of those that are watched, or of the latest."""
        orders = self._orders
        return session.random.choice(orders[:WATCHED] if session.random.random() < 0.3 else orders[-60:])

    async def command(
        self, session: _Session, request: Message, subject: Subject, *, at: int | None = None, seconds: float = PERSIST
    ) -> bool:
        """Repeats a command until it is answered, at any server, some at two at once; whether it was done.

        at: the number of the one server to ask.
        """
        end = time.monotonic() + seconds
        servers = [self._commands[at]] if at is not None else self._commands
        while True:
            twice = session.random.random() < 0.05
            called = session.random.sample(servers, min(len(servers), 2 if twice else 1))
            calls = await asyncio.gather(*(self._call(session, stub, request, subject) for stub in called))
            answered = [it for it in calls if it.receipt is not None or it.refusal]
            if answered:
                self._unanswered.pop(calls[0].request_id, None)
                return answered[0].receipt is not None
            self._unanswered[calls[0].request_id] = request, subject
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.05)

    async def _call(self, session: _Session, stub: Any, request: Any, subject: Subject) -> Write:
        rpc = type(request).__name__.removesuffix("Request")
        invoked = time.monotonic()
        receipt, refusal = None, ""
        try:
            answer = (await getattr(stub, rpc)(request, timeout=_CALL_SECONDS)).receipt
            token = decode_token(answer.consistency_token)
            receipt = Receipt(answer.position, answer.version, token, answer.replayed)
            session.learn(token)
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSED:
                refusal = f"{error.code().name} {error.details()}"
            else:
                self._expect(error, rpc)
        write = Write(session.name, request.request_id, subject, invoked, time.monotonic(), receipt, refusal)
        self.history.writes.append(write)
        return write

    def _expect(self, error: grpc.aio.AioRpcError, rpc: str) -> None:
        if error.code() not in _PASSING:
            self.history.unexpected.append(f"{rpc} got {error.code().name} ({reason_of(error)}): {error.details()}")

    async def _read(self, session: _Session) -> None:
        chance = session.random.random()
        customer = identity("customer", session.random.randint(1, CUSTOMERS))
        if chance < 0.4:
            asked = _one("order", self._some_order(session))
        elif chance < 0.6:
            orders = {self._some_order(session) for _ in range(4)}
            asked = Asked("BatchGetOrderDetails", queries.BatchGetOrderDetailsRequest(order_ids=sorted(orders)))
        elif chance < 0.7:
            request = queries.ListRecentOrdersRequest(customer_id=customer, page_size=20)
            asked = Asked("ListRecentOrders", request)
        elif chance < 0.9:
            asked = _one("product", identity("product", session.random.randint(1, PRODUCTS)))
        else:
            asked = _one("customer", customer)
        chance = session.random.random()
        if chance < 0.5 and session.token is not None:
            asked = asked._replace(needed=(session.token,))
        elif chance < 0.6:
            asked = asked._replace(fully_consistent=True)
        await self._query(session, session.random.choice(self._queries), asked)

    async def _query(self, session: _Session, stub: Any, asked: "Asked") -> bool:
        """Whether it was answered."""
        request, needed = asked.request, asked.needed
        if asked.fully_consistent:
            request.consistency.fully_consistent = True
        request.consistency.tokens.extend([encode_token(it.epoch, it.position, it.mark) for it in needed])
        request.consistency.max_wait.FromMilliseconds(int(_CALL_SECONDS * 500))
        invoked = time.monotonic()
        as_of = None
        try:
            answer = await getattr(stub, asked.rpc)(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND or asked.subject is None:
                self._expect(error, asked.rpc)
                return False
            states: list[tuple[Subject, State | None]] = [(asked.subject, None)]
        else:
            as_of = decode_token(answer.as_of)
            session.learn(Token(as_of.epoch, as_of.position, as_of.mark))
            states = _states_of(answer)
        completed = time.monotonic()
        self.history.reads += [
            Read(session.name, subject, invoked, completed, state, as_of, needed, asked.fully_consistent)
            for subject, state in states
        ]
        return True

    # Streams

    async def _watch(self, session: _Session, subject: Subject) -> None:
        request = queries.WatchOrderDetailsRequest(order_id=subject.id)
        request.heartbeat_interval.FromSeconds(1)
        shown = self.history.shown[session.name]

        def take(message: queries.WatchOrderDetailsResponse) -> None:
            request.resume_from = message.as_of
            state = row_of(message.order_details).state if message.HasField("order_details") else None
            shown.append(Shown(time.monotonic(), decode_token(message.as_of), state))

        await self._stream(session, lambda: session.random.choice(self._queries).WatchOrderDetails(request), take)

    async def _follow(self, session: _Session) -> None:
        request = SubscribeRequest(from_beginning=True)
        request.heartbeat_interval.FromSeconds(1)
        followed = self.history.followed[session.name]

        def take(message: Any) -> None:
            request.after_cursor = message.cursor
            events = tuple((it.position, it.envelope.request_id) for it in message.events)
            followed.append(Followed(time.monotonic(), decode_token(message.cursor), events))

        await self._stream(session, lambda: session.random.choice(self._feeds).Subscribe(request), take)

    async def _stream(self, session: _Session, begin: Callable[[], Any], take: Callable[[Any], None]) -> None:
        """Begins a stream, and another one elsewhere whenever it ends or falls silent."""
        while True:
            call = begin()
            try:
                while True:
                    async with asyncio.timeout(_SILENT_SECONDS):
                        message = await call.read()
                    if message is grpc.aio.EOF:
                        break
                    take(message)
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as error:
                # A watch may begin at a server that has not seen its order yet.
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    self._expect(error, session.name)
            finally:
                call.cancel()
            await asyncio.sleep(0.05)

    # Probes

    async def probe_write(self, server: int) -> Token | None:
        """Stores something at one command server; its token, or None where that fails."""
        session = _Session("probe", self._seed)
        product = identity("product", PRODUCTS)
        request = commands.AdjustStockRequest(request_id=str(uuid.uuid4()), product_id=product, delta=1)
        done = await self.command(session, request, Subject("product", product), at=server, seconds=0)
        return session.token if done else None

    async def probe_read(self, server: int, token: Token) -> bool:
        """Whether one query server gives an answer that includes a token."""
        session = _Session("probe", self._seed)
        product = identity("product", PRODUCTS)
        asked = _one("product", product)._replace(needed=(token,))
        return await self._query(session, self._queries[server], asked)


class Asked(NamedTuple):
    """A query. subject: the one thing that it asks for, None for several. needed: what its answer must include."""

    rpc: str
    request: Any
    subject: Subject | None = None
    needed: tuple[Token, ...] = ()
    fully_consistent: bool = False


def _one(kind: str, key: str) -> Asked:
    """Asks for one thing."""
    requests = {
        "order": ("GetOrderDetails", queries.GetOrderDetailsRequest(order_id=key)),
        "product": ("GetProduct", queries.GetProductRequest(product_id=key)),
        "customer": ("GetCustomer", queries.GetCustomerRequest(customer_id=key)),
    }
    return Asked(*requests[kind], Subject(kind, key))


def _states_of(answer: Any) -> list[tuple[Subject, State | None]]:
    """What an answer of any query shows, and None of what it says is not there."""
    states: list[tuple[Subject, State | None]] = []
    for field, value in answer.ListFields():
        if field.name == "missing_order_ids":
            states += [(Subject("order", it), None) for it in value]
        elif field.message_type is not None:
            rows = map(row_of, [value] if isinstance(value, Message) else value)
            states += [(it.subject, it.state) for it in rows]
    return states


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in an error's details; empty where there is none."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    return info.reason if status is not None and any(it.Unpack(info) for it in status.details) else ""
