import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.load.h2load import LoadFailed, Target, measure, parse_log, send, summarize, write_bodies

METHOD = "/test.Echo/Say"

needs_h2load = pytest.mark.skipif(
    not (shutil.which("h2load") and (shutil.which("gcc") or shutil.which("cc"))), reason="no h2load or no C compiler"
)


class Echo:
    """A server that remembers what it was sent, and refuses what begins with "no"."""

    def __init__(self) -> None:
        self.received: Counter[bytes] = Counter()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handlers: dict[str, Any] = {"Say": grpc.unary_unary_rpc_method_handler(self._say)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
        self.target = Target(f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}", METHOD)
        self._server.start()

    def _say(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.received[request] += 1
        if request.startswith(b"no"):
            context.abort(grpc.StatusCode.NOT_FOUND, "no")
        return request

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.stop()


def test_the_log_gives_ends_and_durations() -> None:
    answered = parse_log(b"1000000\t200\t500\n2000000\t200\t1500\n")
    assert answered.ends == pytest.approx([1.0005, 2.0015])
    assert answered.seconds == pytest.approx([0.0005, 0.0015])


def test_an_answer_that_is_no_http_200_fails_the_load() -> None:
    with pytest.raises(LoadFailed, match=r"-1, 503; of 2 calls out of 3, the first of which began 1.250 s after"):
        parse_log(b"1000000\t200\t500\n2250000\t503\t1500\n3000000\t-1\t1500\n")


def test_what_ends_in_the_warm_up_does_not_count() -> None:
    lines = [f"{1_000_000 + 1000 * number}\t200\t{1000 if number < 100 else 10}\n" for number in range(300)]
    sample = summarize(parse_log("".join(lines).encode()), began=1.1005, cpu={"server": 2.0})
    assert sample.p50 == sample.p99 == pytest.approx(10e-6)
    assert sample.cpu["server"] == pytest.approx(2.0 / 199)
    assert sample.rate == pytest.approx(1000, rel=0.02)


@needs_h2load
def test_each_call_gets_a_body_of_its_own_whatever_their_lengths(echo: Echo, tmp_path: Path) -> None:
    messages = [b"%d:" % number + b"x" * (number * 97 % 40_000) for number in range(300)]
    sample = send(echo.target, write_bodies(tmp_path / "bodies", messages), 300, in_flight=16)
    assert echo.received == Counter(messages)
    assert sample.rate > 0


@needs_h2load
def test_bodies_begin_again_after_the_last_one_unless_each_may_be_sent_once(echo: Echo, tmp_path: Path) -> None:
    bodies = write_bodies(tmp_path / "bodies", [b"a", b"b", b"c"])
    measure(echo.target, bodies, in_flight=1, seconds=0.2, warm_up=0.1)
    assert set(echo.received) == {b"a", b"b", b"c"}
    assert max(echo.received.values()) - min(echo.received.values()) <= 1
    with pytest.raises(LoadFailed, match="fewer bodies"):
        measure(echo.target, bodies, in_flight=1, seconds=0.2, warm_up=0.1, once=True)


@needs_h2load
def test_a_call_that_fails_in_its_trailers_fails_the_load(echo: Echo, tmp_path: Path) -> None:
    bodies = write_bodies(tmp_path / "bodies", [b"yes", b"yes", b"no"])
    with pytest.raises(LoadFailed, match="1 calls failed, the first with status 5; 2 did not"):
        send(echo.target, bodies, 3, in_flight=1)
