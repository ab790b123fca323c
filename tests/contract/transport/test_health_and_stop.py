"""Health tells the truth, and a stop loses no call, whichever transport serves."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import cast

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from structlog.testing import capture_logs

from tandem.runtime import server, supervised
from tandem.runtime.call import Call
from tandem.runtime.server import RunningApplication
from tandem.runtime.settings import ServerSettings
from tandem.testing.stack import until
from tests.contract.transport.conftest import (
    PATIENCE,
    SERVICE,
    Parked,
    Serve,
    Served,
    Transport,
    answer,
    application,
    detail,
    in_thread,
    raw,
    service,
    worker,
)
from tests.support.metrics import sample


class _Renamed:
    """The same service under another name."""

    full_name = "commerce.projection.v1.OtherService"
    methods = SERVICE.methods


OTHER_SERVICE = cast(ServiceDescriptor, _Renamed())
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def _readiness_is_asked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_READINESS_SECONDS", 0.05)


async def watched(served: Served, service: str = "") -> AsyncIterator[int]:
    """The states that a watcher is told, until the stream ends."""
    async for told in served.health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE):
        yield told.status


@pytest.mark.parametrize("service", ["", SERVICE.full_name])
async def test_health_is_told_overall_and_for_the_service(serve: Serve, service: str) -> None:
    served = await serve()
    assert await served.health_of(service) == SERVING


async def test_the_health_of_an_unknown_service_is_not_found(serve: Serve) -> None:
    served = await serve()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await served.health_of("nobody")
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", ["", SERVICE.full_name])
async def test_health_follows_readiness_and_a_watcher_sees_it(serve: Serve, service: str) -> None:
    served = await serve()
    states = watched(served, service)
    assert await anext(states) == SERVING
    served.ready.clear()
    assert await anext(states) == NOT_SERVING
    assert await served.health_of(service) == NOT_SERVING
    served.ready.set()
    assert await anext(states) == SERVING


async def test_a_server_is_alive_while_it_is_not_ready_and_not_when_a_worker_stands_still(serve: Serve) -> None:
    parked = threading.Event()

    def hang(calls: Sequence[Call]) -> None:
        parked.wait(PATIENCE)
        answer(calls)

    served = await serve(worker(hang, max_batch=1), still_seconds=0.2)
    served.ready.clear()

    async def says(name: str, state: int) -> bool:
        return await served.health_of(name) == state

    try:
        await until(lambda: says("", NOT_SERVING), "it is not ready")
        assert await served.health_of("liveness") == SERVING, "a store that is away is no reason to be ended"
        served.ready.set()
        calls = [raw(served.channel)(b"", timeout=PATIENCE) for _ in range(2)]
        await until(lambda: says("liveness", NOT_SERVING), "the second call waits, and its worker does not go on")
        await until(lambda: says("", SERVING), "it is ready")
    finally:
        parked.set()
    await asyncio.gather(*calls)
    assert await served.health_of("liveness") == SERVING


def streams_open(method: str) -> float:
    return sample("tandem_streams_open", method=method) or 0.0


async def test_watches_of_health_and_reflection_are_counted_and_past_the_limit_refused(serve: Serve) -> None:
    served = await serve(max_health_streams=3)
    request = health_pb2.HealthCheckRequest()
    watches = [served.health.Watch(request, timeout=PATIENCE) for _ in range(2)]
    for watch in watches:
        assert (await watch.read()).status == SERVING
    reflection = ServerReflectionStub(served.channel).ServerReflectionInfo(timeout=PATIENCE)
    await reflection.write(ServerReflectionRequest(list_services=""))
    assert len((await reflection.read()).list_services_response.service) == 3
    assert (streams_open("Watch"), streams_open("ServerReflectionInfo")) == (2, 1)

    for refused in (
        served.health.Watch(request, timeout=PATIENCE),
        ServerReflectionStub(served.channel).ServerReflectionInfo(timeout=PATIENCE),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await refused.read()
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(raised.value, error_details_pb2.ErrorInfo).reason == "OVERLOADED"
    assert await served.health_of() == SERVING

    watches[0].cancel()

    async def there_is_room() -> bool:
        return streams_open("Watch") == 1

    await until(there_is_room, "the watch that was cancelled is not counted any more")
    assert await anext(watched(served)) == SERVING


async def test_a_readiness_check_that_fails_means_not_serving_and_is_asked_again(transport: Transport) -> None:
    answers = iter([True])

    async def check() -> bool:
        return next(answers)  # and StopIteration, as RuntimeError, from then on

    running = RunningApplication(application(worker(answer), ServerSettings(port=0, transport=transport), ready=check))
    with capture_logs() as logs:
        await running.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            served = Served(running, channel, asyncio.Event())

            async def is_unwell() -> bool:
                return await served.health_of() == int(NOT_SERVING)

            await until(is_unwell, "health says NOT_SERVING")
            answers = iter([True] * 1000)

            async def is_well() -> bool:
                return await served.health_of() == int(SERVING)

            await until(is_well, "health says SERVING again")
        await running.stop()
    assert {entry["event"] for entry in logs if entry["log_level"] == "error"} == {"the readiness check failed"}


async def test_a_readiness_check_that_does_not_end_means_not_serving_and_no_other_is_begun(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CHECK_SECONDS", 0.1)
    answers = asyncio.Event()
    begun = 0

    async def check() -> bool:
        nonlocal begun
        begun += 1
        return await answers.wait()

    running = RunningApplication(application(worker(answer), ServerSettings(port=0, transport=transport), ready=check))
    await running.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        served = Served(running, channel, asyncio.Event())
        states = watched(served)
        assert await anext(states) == NOT_SERVING
        assert begun == 1
        answers.set()
        assert await anext(states) == SERVING
        answers.clear()
        assert await anext(states) == NOT_SERVING
    await asyncio.wait_for(running.stop(), PATIENCE)


async def test_a_thread_that_does_not_run_is_seen_in_health(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await serve()
    states = watched(served)
    assert await anext(states) == SERVING
    monkeypatch.setitem(supervised._down_until, "one", math.inf)
    assert await anext(states) == NOT_SERVING
    monkeypatch.delitem(supervised._down_until, "one")
    assert await anext(states) == SERVING


async def test_each_of_two_services_tells_its_own_health(transport: Transport) -> None:
    async def away() -> bool:
        return False

    answers = worker(answer)
    base = application(answers, ServerSettings(port=0, transport=transport))
    other = service(answers, OTHER_SERVICE, ready=away)
    running = RunningApplication(replace(base, services=(*base.services, other)))
    await running.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        served = Served(running, channel, asyncio.Event())
        assert await served.health_of() == SERVING
        assert await served.health_of(SERVICE.full_name) == SERVING
        assert await served.health_of(OTHER_SERVICE.full_name) == NOT_SERVING
        assert (await served.call()).feed_head == 7
        other_method = raw(channel, f"/{OTHER_SERVICE.full_name}/ListProjections")
        assert (await other_method(b"", timeout=PATIENCE)).feed_head == 7
    await running.stop()


async def test_a_stop_lets_the_call_under_way_finish_and_refuses_new_ones(serve: Serve, parked: Parked) -> None:
    served = await serve(parked, drain_seconds=PATIENCE)
    under_way = served.call()
    await in_thread(parked.entered)
    stopping = asyncio.create_task(served.running.stop())

    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.running.port}") as another:
        new = Served(served.running, another, asyncio.Event())

        async def new_calls_are_refused() -> bool:
            # Short: a call that is not refused would wait for the release.
            refusal = await new.refusal(timeout=0.5)
            return refusal.code() == grpc.StatusCode.UNAVAILABLE

        await until(new_calls_are_refused, "new calls are UNAVAILABLE")
    assert not stopping.done()
    parked.release()
    assert (await under_way).feed_head == 7
    await asyncio.wait_for(stopping, PATIENCE)


async def test_a_stop_loses_none_of_many_answers(serve: Serve) -> None:
    parked = Parked()
    served = await serve(parked, drain_seconds=PATIENCE)
    calls = [asyncio.ensure_future(served.outcome()) for _ in range(100)]

    async def all_are_under_way() -> bool:
        return parked.count == 100

    await until(all_are_under_way, "100 calls are under way")
    stopping = asyncio.create_task(served.running.stop())
    parked.release()
    assert set(await asyncio.gather(*calls)) == {grpc.StatusCode.OK}
    await asyncio.wait_for(stopping, PATIENCE)


async def test_a_call_that_outlasts_the_drain_is_cancelled(serve: Serve, parked: Parked) -> None:
    served = await serve(parked, drain_seconds=0.1)
    under_way = asyncio.create_task(served.refusal())
    await in_thread(parked.entered)
    await asyncio.wait_for(served.running.stop(), PATIENCE)
    await in_thread(parked.cancelled)
    assert (await under_way).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_health_says_not_serving_before_new_calls_are_refused(serve: Serve) -> None:
    served = await serve(drain_delay_seconds=2)
    states = watched(served)
    assert await anext(states) == SERVING
    stopping = asyncio.create_task(served.running.stop())
    assert await anext(states) == NOT_SERVING
    assert await served.outcome() == grpc.StatusCode.OK
    assert await served.health_of() == NOT_SERVING
    await asyncio.wait_for(stopping, PATIENCE)


async def test_readiness_does_not_bring_a_stopping_server_back(serve: Serve, parked: Parked) -> None:
    served = await serve(parked, drain_delay_seconds=0.5, drain_seconds=PATIENCE)
    served.ready.clear()
    states = watched(served)
    while await anext(states) != NOT_SERVING:
        pass
    stopping = asyncio.create_task(served.running.stop())
    served.ready.set()
    assert [state async for state in states if state == SERVING] == []
    await asyncio.wait_for(stopping, PATIENCE)


async def test_an_event_loop_that_is_held_up_is_seen_in_metrics(serve: Serve) -> None:
    def late() -> float:
        """Seconds, of all looks together."""
        return sample("tandem_event_loop_delay_seconds_sum") or 0.0

    await serve()
    before = late()
    # Longer than it is to the next look, which is due meanwhile.
    time.sleep(0.25)  # noqa: ASYNC251 - that is what holds it up

    async def is_seen() -> bool:
        return late() - before >= 0.15

    await until(is_seen, "the next look")


async def test_a_watcher_of_health_does_not_hold_a_stop_up(serve: Serve) -> None:
    served = await serve(drain_seconds=300)
    states = watched(served)
    assert await anext(states) == SERVING
    await asyncio.wait_for(served.running.stop(), PATIENCE)
    assert await anext(states) == NOT_SERVING


class Part:
    """A component that notes when it is started and stopped."""

    def __init__(self, name: str, notes: list[str], *, starts: bool = True, stops: bool = True) -> None:
        self._name = name
        self._notes = notes
        self._starts = starts
        self._stops = stops

    async def start(self) -> None:
        if not self._starts:
            raise ValueError(f"{self._name} cannot start")
        self._notes.append(f"start {self._name}")

    async def stop(self) -> None:
        self._notes.append(f"stop {self._name}")
        if not self._stops:
            raise ValueError(f"{self._name} cannot stop")


async def test_components_start_in_order_and_stop_in_reverse_after_the_last_call(serve: Serve) -> None:
    notes: list[str] = []
    parked = Parked()
    parts = (Part("a", notes), Part("b", notes))
    served = await serve(parked, components=parts, drain_seconds=PATIENCE)
    under_way = served.call()
    await in_thread(parked.entered)
    stopping = asyncio.create_task(served.running.stop())
    parked.release()
    await under_way
    assert [note for note in notes if note.startswith("start")] == notes[:2] == ["start a", "start b"]
    await asyncio.wait_for(stopping, PATIENCE)
    assert notes[2:] == ["stop b", "stop a"]


async def test_a_component_that_cannot_start_stops_what_had_started(transport: Transport) -> None:
    notes: list[str] = []
    parts = (Part("a", notes), Part("b", notes), Part("c", notes, starts=False))
    settings = ServerSettings(port=0, transport=transport)
    running = RunningApplication(application(worker(answer), settings, components=parts))
    with pytest.raises(ValueError, match="c cannot start"):
        await running.start()
    assert notes == ["start a", "start b", "stop b", "stop a"]


async def test_a_component_that_cannot_stop_is_named_and_the_others_are_stopped(serve: Serve) -> None:
    notes: list[str] = []
    parts = (Part("a", notes), Part("b", notes, stops=False), Part("c", notes, stops=False), Part("d", notes))
    served = await serve(components=parts)
    with capture_logs() as logs, pytest.raises(ExceptionGroup) as raised:
        await served.running.stop()
    assert notes[4:] == ["stop d", "stop c", "stop b", "stop a"]
    assert [str(error) for error in raised.value.exceptions] == ["c cannot stop", "b cannot stop"]
    assert [log["component"] for log in logs if log["log_level"] == "error"] == ["Part", "Part"]


async def test_a_failed_start_is_what_is_raised_when_a_stop_fails_after_it(transport: Transport) -> None:
    notes: list[str] = []
    parts = (Part("a", notes), Part("b", notes, stops=False), Part("c", notes, starts=False))
    running = RunningApplication(
        application(worker(answer), ServerSettings(port=0, transport=transport), components=parts)
    )
    with pytest.raises(ValueError, match="c cannot start"):
        await running.start()
    assert notes == ["start a", "start b", "stop b", "stop a"]
