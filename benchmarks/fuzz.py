"""Sends crafted requests and measures what they cost, and what other callers notice: `python -m benchmarks.fuzz`."""

import argparse
import asyncio
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from commerce.command.v1.command_service_pb2 import DESCRIPTOR as COMMANDS
from commerce.query.v1.query_service_pb2 import DESCRIPTOR as QUERIES
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from tandem.cli.embedded import Postgres
from tandem.runtime.settings import ServerSettings
from tandem.testing.ports import free_port
from tests.support.builders import identity
from tests.support.shop import Load, open_shop
from tests.support.stack import Databases, Stack

# What texts are made of: marks, letters that become many, words that nearly match, and what separates words.
PIECES = ("a", "ab", "plant ", "\u0301\u0323", "\u0316", "\ufdfa", "\u3300", "\ufb01", "İ", "\U0001d16d", " ", "<", "é")


class Sizes(NamedTuple):
    """Texts and repeated fields of crafted requests have at most so many characters and elements."""

    longest: int
    many: int


# Mostly more than the contract takes.
CRAFTED = Sizes(3_000, 200)
# Megabytes. To make one takes longer than to refuse it, so a method's three largest are sent again and again.
LARGE = Sizes(2_000_000, 100_000)
# As large as servers take, to compare with.
FULL = Sizes(40_000, 1_000)
# Up to here the native transport is judged by what others notice; larger ones are measured, and judged on grpcio.
LARGE_BYTES = 4 * 1024 * 1024
# Callers that send crafted requests, or plain ones, at once. They have one processor, and the servers the others: what
# they take to make requests is not taken from other callers.
CALLERS = 4
# Each kind of requests is sent for a part of its time, in turns: what else the machine does is in all of them.
ROUNDS = 5
# A request may take so long, and so much more for each KiB of it.
MOST_SECONDS = 0.5
MOST_SECONDS_A_KIB = 0.002
# How much longer the slowest hundredth of another caller's reads may take, and what is too short to be compared.
MOST_TIMES = 2.0
LEAST_SECONDS = 0.01

Send = Callable[[bytes], object]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="for plain requests, for crafted and for large ones")
    parser.add_argument("--transport", choices=("native", "grpcio"), default="native")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="what the requests are made from")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tandem-fuzz-") as folder:
        postgres = Postgres(Path(folder) / "data", free_port())
        postgres.start()
        stack = Stack(Databases(postgres), Path(folder), transport=arguments.transport)
        try:
            stack.start()
            asyncio.run(fill(stack))
            return compare(stack, arguments.seconds, arguments.seed, judge_huge=arguments.transport == "grpcio")
        finally:
            stack.stop()
            postgres.stop()


async def fill(stack: Stack) -> None:
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        await Load(500, buyers=16).run(stubs.commands, first=1)


def compare(stack: Stack, seconds: float, seed: int, *, judge_huge: bool) -> int:
    """Returns the exit code. What a run finds is found again with its seed, as far as threads allow."""
    ports = {"CommandService": stack.command_server.port, "QueryService": stack.query_server.port}
    methods = {it: sender(ports[it.containing_service.name], it) for it in unary_methods()}
    sys.stdout.write(f"seed {seed}\n")
    within = {it: largest(it, seed, FULL, ServerSettings(port=0).max_request_bytes) for it in methods}
    refused = {it: largest(it, seed, LARGE, LARGE_BYTES) for it in methods}
    endless = {it: largest(it, seed, LARGE) for it in methods}
    separate(stack)
    full = Run(lambda it, number: within[it][number % 3])
    plain = Run(lambda it, number: request(it, seed + number, None))
    crafted = Run(lambda it, number: request(it, seed + number, CRAFTED))
    large = Run(lambda it, number: refused[it][number % 3])
    huge = Run(lambda it, number: endless[it][number % 3])
    reader = Reader(stack.query_server.port)
    for _ in range(ROUNDS):
        for it in (plain, crafted, full, large, huge):
            run(stack, reader, methods, seconds / ROUNDS, it)
    reader.stop()
    hostile = crafted.calls + full.calls + large.calls + huge.calls
    slow = sorted(((took, size, name) for took, size, name in hostile if took > allowed(size)), reverse=True)
    judged = (crafted, full, large, huge) if judge_huge else (crafted, full, large)
    times = max(it.p99 for it in judged) / max(plain.p99, LEAST_SECONDS)
    named = {"plain": plain, "crafted": crafted, "full": full, "large": large, "huge": huge}
    for name, it in named.items():
        sys.stdout.write(
            f"others' p99: {1000 * it.p99:.1f} ms beside {len(it.calls)} {name} requests of {it.mebibytes:.0f} MiB;"
            f" processor time: {it.callers_seconds:.1f} s to send them, {it.servers_seconds:.1f} s of the servers\n"
        )
    by_name: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for took, size, name in hostile:
        by_name[name].append((took, size))
    for name, calls in sorted(by_name.items()):
        took, size = max(calls)
        sys.stdout.write(f"{name:28}{len(calls):>7} calls, the slowest {1000 * took:>8.1f} ms of {size:>8} bytes\n")
    for took, size, name in slow[:10]:
        sys.stdout.write(f"TOO SLOW: {name}, {took:.2f} s for {size} bytes\n")
    if times > MOST_TIMES:
        sys.stdout.write(f"TOO MUCH: others' p99 is {times:.1f} times what it was\n")
    return 1 if slow or times > MOST_TIMES else 0


def largest(method: MethodDescriptor, seed: int, sizes: Sizes, most: int = 2**31) -> list[bytes]:
    """Three requests of at most so many bytes, maybe the same."""
    made = sorted((request(method, seed + number, sizes) for number in range(8)), key=len)
    return ([it for it in made if len(it) <= most] or [request(method, seed, None)])[-3:] * 3


def allowed(size: int) -> float:
    return MOST_SECONDS + MOST_SECONDS_A_KIB * size / 1024


def separate(stack: Stack) -> None:
    """This process to one processor, the servers to the others."""
    first, *others = sorted(os.sched_getaffinity(0))
    _pin(os.getpid(), {first})
    for service in stack.services:
        _pin(service.pid, set(others) or {first})


def _pin(process: int, processors: set[int]) -> None:
    """Each of its threads; those that they start have the same."""
    for thread in psutil.Process(process).threads():
        os.sched_setaffinity(thread.id, processors)


class Run:
    """What one kind of requests cost, in all rounds.

    calls: seconds, bytes and method of each. took: seconds of another caller's reads.
    """

    def __init__(self, made: Callable[[MethodDescriptor, int], bytes]) -> None:
        self.made = made
        self.calls: list[tuple[float, int, str]] = []
        self.took: list[float] = []
        self.callers_seconds = 0.0
        self.servers_seconds = 0.0

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.took, n=100)[-1]

    @property
    def mebibytes(self) -> float:
        return sum(size for _, size, _ in self.calls) / 2**20


class Reader:
    """Another caller, in a process of its own, who reads an order a hundred times a second while it is asked to."""

    def __init__(self, port: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=_read, args=(port, there))
        self._process.start()
        assert self._pipe.poll(60), "it has begun"
        self._pipe.recv()

    def stop(self) -> None:
        self._pipe.send(False)
        self._process.join()

    @contextmanager
    def reading(self) -> Iterator[list[float]]:
        """The seconds that each read took, when it is over."""
        took: list[float] = []
        self._pipe.send(True)
        try:
            yield took
        finally:
            self._pipe.send(None)
            took += self._pipe.recv()


def _read(port: int, asked: Any) -> None:
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    method = QUERIES.services_by_name["QueryService"].methods_by_name["GetOrderDetails"]
    send = sender(port, method)
    payload = GetOrderDetailsRequest(order_id=identity("order", 1)).SerializeToString()
    send(payload)
    asked.send(None)
    while asked.recv():
        took: list[float] = []
        while not asked.poll(0.01):
            began = time.monotonic()
            send(payload)
            took.append(time.monotonic() - began)
        asked.recv()
        asked.send(took)


def run(stack: Stack, reader: Reader, methods: dict[MethodDescriptor, Send], seconds: float, result: Run) -> None:
    end = time.monotonic() + seconds
    begin = len(result.calls)

    def call(first: int) -> None:
        for number in range(begin + first, 10**9, CALLERS):
            if time.monotonic() > end:
                return
            method = list(methods)[number % len(methods)]
            payload = result.made(method, number)
            began = time.monotonic()
            methods[method](payload)
            result.calls.append((time.monotonic() - began, len(payload), method.name))

    callers = [threading.Thread(target=call, args=(first,)) for first in range(CALLERS)]
    with reader.reading() as took:
        own, servers = time.process_time(), servers_time(stack)
        for it in callers:
            it.start()
        for it in callers:
            it.join()
        result.callers_seconds += time.process_time() - own
        result.servers_seconds += servers_time(stack) - servers
    result.took += took


def servers_time(stack: Stack) -> float:
    times = [psutil.Process(it.pid).cpu_times() for it in stack.services]
    return sum(it.user + it.system for it in times)


def unary_methods() -> list[MethodDescriptor]:
    services = (COMMANDS.services_by_name["CommandService"], QUERIES.services_by_name["QueryService"])
    return [it for service in services for it in service.methods if not it.server_streaming]


def sender(port: int, method: MethodDescriptor) -> Send:
    service = method.containing_service
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
    call: Any = channel.unary_unary(
        f"/{service.full_name}/{method.name}",
        request_serializer=bytes,
        response_deserializer=bytes,
    )

    def send(payload: bytes) -> object:
        try:
            return call(payload, timeout=60)
        except grpc.RpcError as error:
            # Most are refused, as they are to be.
            return error

    return send


def request(method: MethodDescriptor, seed: int, sizes: Sizes | None) -> bytes:
    return make(method.input_type, random.Random(seed), sizes).SerializeToString()


def make(descriptor: Descriptor, chance: random.Random, sizes: Sizes | None) -> Message:
    """A request with some of its fields set: crafted, or plain, with short values."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if chance.random() < 0.2:
            continue
        if not field.is_repeated:
            put(message, field, value(field, chance, sizes))
            continue
        count = int(sizes.many ** chance.random()) if sizes else 1
        one = value(field, chance, sizes if count < 100 else None)
        for _ in range(count):
            put(message, field, one)
    return message


def put(message: Any, field: FieldDescriptor, given: Any) -> None:
    if field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry:
        return
    if field.message_type is not None:
        (getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)).CopyFrom(given)
    elif field.is_repeated:
        getattr(message, field.name).append(given)
    else:
        setattr(message, field.name, given)


def value(field: FieldDescriptor, chance: random.Random, sizes: Sizes | None) -> Any:
    if field.message_type is not None:
        return make(field.message_type, chance, sizes)
    if field.enum_type is not None:
        return chance.choice(field.enum_type.values).number
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return text(field, chance, sizes)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    return chance.choice((0, 1, 2, 100, 2**31 - 1))


def text(field: FieldDescriptor, chance: random.Random, sizes: Sizes | None) -> str | bytes:
    if field.name.endswith(("_id", "_ids")) and (not sizes or chance.random() < 0.7):
        kind = field.name.removesuffix("_ids").removesuffix("_id")
        return str(uuid.UUID(int=chance.getrandbits(128))) if chance.random() < 0.5 else identity(kind, 1)
    size = int(sizes.longest ** chance.random()) if sizes and chance.random() < 0.3 else chance.randrange(1, 200)
    pieces = [chance.choice(PIECES if sizes else PIECES[:3]) for _ in range(chance.randrange(1, 5))]
    made = ("".join(pieces) * size)[:size]
    return made.encode() if field.type == FieldDescriptor.TYPE_BYTES else made


if __name__ == "__main__":
    sys.exit(main())
