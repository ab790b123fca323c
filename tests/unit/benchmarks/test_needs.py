"""What many servers need follows from what few were measured to take, and from nothing else."""

from dataclasses import replace

from benchmarks.scale.needs import Costs, needs

COSTS = Costs(
    cached={"server": 100e-6, "stores": 20e-6, "Envoy": 50e-6},
    listed={"server": 300e-6, "stores": 200e-6, "Envoy": 50e-6},
    order={"server": 600e-6, "stores": 500e-6},
    at_primary=1,
    at_replica=2.7,
    pooled=21,
    at_nodes=1.3,
    nodes=2,
    of_command_server=4,
    announcements=100,
    announcement_bytes=1250,
    announcement_heard=200e-6,
    announcement_sent=10e-6,
)


def results(costs: Costs, query_servers: int, command_servers: int) -> dict[str, str]:
    return {
        what: result
        for what, _, result in needs(costs, query_servers=query_servers, command_servers=command_servers).rows
    }


def test_each_result_is_computed_from_the_costs() -> None:
    found = results(COSTS, 100, 3)
    # Half a processor each, at 0.9 * 100 + 0.1 * 300 microseconds.
    assert found["reads/s"] == "416,667"
    assert found["processors of PostgreSQL for the lists, at replicas"] == "8.33"
    assert found["connections to replicas of the read database"] == "300", "no server has a part of a connection"
    assert found["Mbit/s for them"] == "100"
    assert found["connections of command servers to the write database"] == "12"


def test_what_costs_twice_as_much_serves_half_as_many() -> None:
    dear = replace(COSTS, cached={**COSTS.cached, "server": 200e-6}, listed={**COSTS.listed, "server": 600e-6})
    assert results(dear, 100, 3)["reads/s"] == results(COSTS, 50, 3)["reads/s"]
