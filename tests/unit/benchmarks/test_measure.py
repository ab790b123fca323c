from itertools import cycle

from benchmarks.measure import Result, Sample, Spread, alternate, at_least, at_most, p99, rate, ratios


def sample(rate: float, *, p99: float = 0.002) -> Sample:
    return Sample(rate=rate, p50=0.001, p99=p99, cpu={"server": 0.0003, "stores": 0.0001, "load": 0.0001})


def test_contenders_take_turns_so_that_drift_cancels() -> None:
    order = []

    def turn(name: str) -> Sample:
        order.append(name)
        return sample(len(order))

    samples = alternate({"a": lambda: turn("a"), "b": lambda: turn("b")}, rounds=2, calibrate=lambda: 1.0)
    assert order == ["a", "b", "a", "b"]
    assert [it.rate for it in samples["a"]] == [1, 3]


def test_a_turn_in_which_the_machine_changed_is_measured_again() -> None:
    # Before the first turn, after it, and after the second one.
    speeds = iter((1.0, 1.3, 1.25))
    rates = iter((100.0, 80.0))
    [found] = alternate({"a": lambda: sample(next(rates))}, rounds=1, calibrate=lambda: next(speeds))["a"]
    assert found.rate == 80
    assert found.calibration == (1.3, 1.25)
    assert [round(it, 2) for it in found.rejected] == [0.3]
    assert not found.is_noisy


def test_a_machine_that_never_settles_is_said_to_be_noisy() -> None:
    speeds = cycle((1.0, 2.0))
    found = alternate({"a": lambda: sample(1)}, rounds=5, calibrate=lambda: next(speeds))["a"]
    assert all(it.is_noisy for it in found)
    # Of five turns two are measured again, which the first one takes.
    assert [it.rejected for it in found] == [(1.0, 1.0), (), (), (), ()]


def test_who_is_measured_seldom_is_compared_in_the_rounds_that_it_has() -> None:
    contenders = {"a": lambda: sample(2)}, {"b": lambda: sample(1)}
    samples = alternate(contenders[0], rounds=3, seldom=contenders[1], seldom_rounds=1, calibrate=lambda: 1.0)
    assert {name: len(found) for name, found in samples.items()} == {"a": 3, "b": 1}
    assert ratios(samples, "a", "b") == [2]


def test_a_ratio_is_one_of_neighbours() -> None:
    # The machine became ten times as slow in the second round; the contenders' ratio did not change.
    samples = {"a": [sample(2000), sample(200)], "b": [sample(1000), sample(100)]}
    assert ratios(samples, "a", "b") == [2, 2]
    assert ratios(samples, "a", "b", p99) == [1, 1]


def test_the_median_decides_whether_a_bar_holds() -> None:
    assert at_least("rate", [0.5, 0.9, 0.8], 0.8).holds
    assert not at_least("rate", [0.5, 0.7, 0.9], 0.8).holds
    assert at_most("p99", [1.5, 1.4, 9], 1.5).holds
    assert at_most("p99", [1, 2, 3], 9).measured == Spread(2, 1, 3)


def test_processor_time_is_told_in_shares() -> None:
    shares = sample(1).shares
    assert {who: round(share, 3) for who, share in shares.items()} == {"server": 0.6, "stores": 0.2, "load": 0.2}


def test_a_result_becomes_json_with_medians_ranges_and_samples() -> None:
    samples = {"a": [sample(3), sample(1), sample(2)]}
    found = Result("reads", samples, bars=[at_least("enough", [1], 2)]).to_json()
    assert found["contenders"]["a"]["rate"] == {"median": 2, "low": 1, "high": 3}
    assert [it["rate"] for it in found["contenders"]["a"]["samples"]] == [3, 1, 2]
    assert found["bars"][0]["holds"] is False
    assert Result("reads", samples).spread("a", rate) == Spread(2, 1, 3)
