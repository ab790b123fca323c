"""Amazon EventBridge: events go to a bus, the relay's place to an item of a DynamoDB table.

EventBridge keeps nothing that could be asked for what it has been given, and hands on each event at least once and in
no order. So a place is kept beside it: events are sent, and the place is moved on when all of them were taken. A relay
that dies in between has some of them sent again, with the same ids: consumers dedupe by `id`, and order by `sequence`.

One relay sends at a time: it has its name in the item, where each change is made on the condition that the item is what
it was. One that was paused and goes on sends what it had in hand once more, at most.

Tested on an emulator, moto's server, and not yet run on AWS.
"""

import asyncio
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError, PartialCredentialsError
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from tandem.relay.cloud_events import CloudEvent
from tandem.relay.settings import EventBridgeSettings
from tandem.relay.sink import Origin, Place, PlaceTaken, SinkAway, SinkRefused
from tandem.runtime.telemetry import log

MOST_ENTRIES = 10
MOST_BYTES = 256 * 1024
"""Of all entries of one call, as PutEvents counts them."""

# What each entry counts for beside its texts, for its time.
_ENTRY_BYTES = 14
# What passes by itself: of an entry, of a call.
_PASSING = frozenset(
    (
        "InternalException",
        "InternalFailure",
        "InternalServerError",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "ThrottledException",
        "ThrottlingException",
        "TransactionInProgressException",
    )
)
_FOR_A_PERSON = (NoCredentialsError, NoRegionError, PartialCredentialsError)
_SHORTEST_PAUSE = 0.05
# How often the place is moved on while much is sent: a tenth of what standing by takes.
_MOVE_SECONDS = 0.3
_LONGEST_PAUSE = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry:
    """An event as PutEvents takes it. size: in bytes, as it counts them."""

    event: CloudEvent
    request: dict[str, Any]
    size: int


@dataclass(frozen=True)
class _Item:
    """What the table has of an epoch."""

    position: int
    mark: int
    relay: str
    personal_data: str


class EventBridgeSink:
    """A Sink. It has a thread of its own, on which AWS is called."""

    def __init__(
        self,
        settings: EventBridgeSettings,
        message: type[Message],
        *,
        relay: str,
        source: str,
        first_position: int,
        personal_data: str,
    ) -> None:
        """message: what the data of events is. relay: the name of this one, another one than all others' have.

        source: of entries, as the settings of the relay have it. personal_data: sealed or opened.
        """
        self._settings = settings
        self._message = message
        self._relay = relay
        self._source = source
        self._first = first_position
        self._personal_data = personal_data
        self._thread = ThreadPoolExecutor(1, "relay-eventbridge")
        self._bus: Any = None
        self._table: Any = None
        # By epoch, as it was read or written last.
        self._items: dict[uuid.UUID, _Item | None] = {}
        # Whether the place is this relay's, as far as it knows.
        self._holds = False

    async def place(self, feed: Origin) -> Place:
        return await self._on_thread(lambda: self._find_place(feed.epoch))

    async def publish(self, epoch: uuid.UUID, events: Sequence[CloudEvent]) -> None:
        await self._on_thread(lambda: self._publish(epoch, events))

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        await asyncio.to_thread(self._thread.shutdown)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._asked, work)

    def _asked(self, work: Callable[[], T]) -> T:
        """What is done. Raises SinkAway, SinkRefused and PlaceTaken."""
        try:
            if self._bus is None:
                self._connect()
            return work()
        except ClientError as error:
            code = error.response["Error"].get("Code", "")
            kind = SinkAway if code in _PASSING or _status_of(error) >= 500 else SinkRefused
            raise kind(f"AWS says: {error}") from error
        except _FOR_A_PERSON as error:
            raise SinkRefused(f"AWS cannot be asked: {error}") from error
        except BotoCoreError as error:
            raise SinkAway(f"AWS does not answer: {error}") from error

    def _connect(self) -> None:
        # They open a socket when they are imported, to see whether there is IPv6.
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        seconds = self._settings.ack_seconds
        # What is tried again is ours to say: the relay asks where it is before.
        config = Config(connect_timeout=seconds, read_timeout=seconds, retries={"total_max_attempts": 1})
        session = boto3.Session(region_name=self._settings.region)
        self._bus, self._table = (session.client(it, config=config) for it in ("events", "dynamodb"))

    def _disconnect(self) -> None:
        """Their connections are kept open for the next question."""
        for it in (self._bus, self._table):
            if it is not None:
                it.close()
        self._bus = self._table = None

    # The place.

    def _key(self, epoch: uuid.UUID) -> dict[str, Any]:
        return {"feed": {"S": f"{self._settings.bus}/{epoch.hex}"}}

    def _find_place(self, epoch: uuid.UUID) -> Place:
        self._look_for_bus()
        item = self._items[epoch] = self._read(epoch)
        if item is None:
            return Place(self._first - 1, 0, "")
        if item.personal_data != self._personal_data:
            raise SinkRefused(
                f"the place in the table {self._settings.table} is for personal data {item.personal_data}, and the"
                f" setting is {self._personal_data}: delete the item {self._key(epoch)['feed']['S']}, and the relay"
                " sends all events again, or set it back"
            )
        return Place(item.position, item.mark, item.relay)

    def _look_for_bus(self) -> None:
        """A bus that is not there takes events, for nobody."""
        try:
            self._bus.describe_event_bus(Name=self._settings.bus)
        except ClientError as error:
            if error.response["Error"].get("Code") != "ResourceNotFoundException":
                raise
            raise SinkRefused(f"there is no event bus {self._settings.bus}: make it, or name another one") from error

    def _read(self, epoch: uuid.UUID) -> _Item | None:
        try:
            found = self._table.get_item(TableName=self._settings.table, Key=self._key(epoch), ConsistentRead=True)
        except ClientError as error:
            if error.response["Error"].get("Code") != "ResourceNotFoundException":
                raise
            self._create_table()
            return None
        if (item := found.get("Item")) is None:
            return None
        return _Item(int(item["position"]["N"]), int(item["mark"]["N"]), item["relay"]["S"], item["personal_data"]["S"])

    def _create_table(self) -> None:
        """Waits until it is there."""
        table = self._settings.table
        try:
            self._table.create_table(
                TableName=table,
                KeySchema=[{"AttributeName": "feed", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "feed", "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )
        except ClientError as error:
            # Another relay makes it.
            if error.response["Error"].get("Code") != "ResourceInUseException":
                raise
        else:
            log.info("a table was made", table=table)
        deadline = time.monotonic() + self._settings.ack_seconds
        while self._table.describe_table(TableName=table)["Table"]["TableStatus"] != "ACTIVE":
            if time.monotonic() > deadline:
                raise SinkAway(f"the table {table} is being made")
            time.sleep(_LONGEST_PAUSE)

    def _write(self, epoch: uuid.UUID, position: int, mark: int) -> None:
        """Raises PlaceTaken where the item is not what this relay has read or written last."""
        known = self._items.get(epoch)
        item = _Item(position, mark, self._relay, self._personal_data)
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(feed)"}
        if known is not None:
            condition = {
                # `position` is a word of theirs.
                "ConditionExpression": "#position = :position AND relay = :relay",
                "ExpressionAttributeNames": {"#position": "position"},
                "ExpressionAttributeValues": {":position": {"N": str(known.position)}, ":relay": {"S": known.relay}},
            }
        try:
            self._table.put_item(
                TableName=self._settings.table,
                Item={
                    **self._key(epoch),
                    "position": {"N": str(position)},
                    "mark": {"N": str(mark)},
                    "relay": {"S": self._relay},
                    "personal_data": {"S": self._personal_data},
                },
                **condition,
            )
        except ClientError as error:
            if error.response["Error"].get("Code") != "ConditionalCheckFailedException":
                raise
            self._holds = False
            raise PlaceTaken("another relay has moved the place") from error
        self._items[epoch] = item

    # Events.

    def _publish(self, epoch: uuid.UUID, events: Sequence[CloudEvent]) -> None:
        known, at = self._items.get(epoch), events[0].position - 1
        if known is not None and known.position != at:
            raise PlaceTaken(f"the place is at {known.position}, not at {at}")
        if known is None or known.relay != self._relay:
            if self._holds:
                self._holds = False
                raise PlaceTaken("another relay has taken the place")
            # It is this relay's before it sends anything.
            self._write(epoch, at, known.mark if known is not None else 0)
        self._holds = True
        waiting = deque(self._entry(epoch, it) for it in events)

        def move() -> None:
            # What is waiting still is in order, and all before its first event was taken.
            sent = events if not waiting else [it for it in events if it.position < waiting[0].event.position]
            if sent and sent[-1].position > at:
                self._write(epoch, sent[-1].position, sent[-1].mark)

        try:
            self._send(waiting, move)
        finally:
            move()

    def _send(self, waiting: deque[_Entry], move: Callable[[], None]) -> None:
        """Sends all, and takes those that were taken away. Raises SinkAway after a while, and SinkRefused.

        move: moves the place on. Relays that stand by take over from one that does not for a while.
        """
        deadline = time.monotonic() + self._settings.ack_seconds
        pause = _SHORTEST_PAUSE
        move_at = time.monotonic() + _MOVE_SECONDS
        while waiting:
            if time.monotonic() >= move_at:
                move()
                move_at = time.monotonic() + _MOVE_SECONDS
            call = _together(waiting)
            results = self._bus.put_events(Entries=[it.request for it in call])["Entries"]
            taken = {it.event.position for it, result in zip(call, results, strict=True) if "EventId" in result}
            refused = [(it, result) for it, result in zip(call, results, strict=True) if "EventId" not in result]
            for it in [it for it in waiting if it.event.position in taken]:
                waiting.remove(it)
            for it, result in refused:
                if result.get("ErrorCode") not in _PASSING:
                    said = f"{result.get('ErrorCode')}: {result.get('ErrorMessage')}"
                    raise SinkRefused(f"EventBridge refuses event {it.event.position}: {said}")
            if not refused:
                deadline, pause = time.monotonic() + self._settings.ack_seconds, _SHORTEST_PAUSE
                continue
            if time.monotonic() > deadline:
                first, result = refused[0]
                raise SinkAway(f"EventBridge does not take event {first.event.position}: {result.get('ErrorCode')}")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _entry(self, epoch: uuid.UUID, event: CloudEvent) -> _Entry:
        detail = {**event.attributes, "datacontenttype": "application/json", "tandemepoch": epoch.hex}
        data = MessageToDict(self._message.FromString(event.data))
        entry = self._entry_of(event, {**detail, "data": data})
        if entry.size > MOST_BYTES:
            # A claim check: where to get it is said instead.
            entry = self._entry_of(event, {**detail, "dataref": f"urn:tandem:event:{epoch.hex}:{event.position}"})
        return entry

    def _entry_of(self, event: CloudEvent, detail: dict[str, Any]) -> _Entry:
        texts = {
            "Source": self._source,
            "DetailType": event.attributes["type"],
            "Detail": json.dumps(detail, ensure_ascii=False, separators=(",", ":")),
        }
        time_of = datetime.fromtimestamp(event.recorded_at, UTC)
        request = {"EventBusName": self._settings.bus, "Time": time_of, **texts}
        return _Entry(event, request, _ENTRY_BYTES + sum(len(it.encode()) for it in texts.values()))


def _together(waiting: Sequence[_Entry]) -> list[_Entry]:
    """What goes into the next call: the first event of each key alone.

    A call takes some of its entries and not others. So no event of a key is sent before the one before it was taken.
    """
    call: list[_Entry] = []
    keys: set[str] = set()
    size = 0
    for it in waiting:
        if it.event.key in keys:
            continue
        keys.add(it.event.key)
        size += it.size
        if call and size > MOST_BYTES:
            break
        call.append(it)
        if len(call) == MOST_ENTRIES:
            break
    return call


def _status_of(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status
