import json
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.measure import Figure, Result, Sample, Spread, at_least, ratios


def results() -> list[Result]:
    def sample(rate: float) -> Sample:
        return Sample(rate=rate, p50=0.001, p99=0.004, cpu={"server": 0.0003, "load": 0.0001})

    samples = {"Tandem": [sample(9_000), sample(12_000)], "joins": [sample(1_000), sample(1_000)]}
    return [
        Result("reads", samples, bars=[at_least("rate, times joins", ratios(samples, "Tandem", "joins"), 20)]),
        Result("rebuild", {"Tandem": [Sample(rate=5, p50=0, p99=0)]}),
        Result("memory", figures=[Figure("query_server", Spread(80, 80, 80), "MiB")]),
    ]


TOOK = report.Took(all=200, start_up=10)


def test_the_table_says_rates_latencies_shares_and_whether_bars_hold() -> None:
    table = report.table(results(), TOOK)
    assert "10,500    (9,000..12,000)" in table
    assert "1.00     4.00  0.400: server 75%, load 25%" in table
    assert "DOES NOT HOLD  rate, times joins: 10.5 (9..12), asked for: ≥ 20" in table
    assert "query_server                                           80 (80..80) MiB" in table
    assert "It took 200 s, of which 10 s to start (5%)" in table


def test_the_table_says_what_was_not_measured_and_how_steady_the_machine_was() -> None:
    steady = Sample(rate=1, p50=0.001, p99=0.002, calibration=(0.05, 0.051))
    noisy = replace(steady, calibration=(0.05, 0.08), rejected=(0.3, 0.4))
    table = report.table([Result("reads", {"Tandem": [steady, noisy]}, not_measured=["times Go: no Go"])], TOOK)
    assert "NOT MEASURED   times Go: no Go" in table
    assert "NOISY: the machine's speed moved by 60% in 1 turns of Tandem" in table
    assert "of 2 turns 2 were measured again, and 1 stayed noisy" in table


def test_the_bars_become_a_table_for_the_page() -> None:
    [_, _, row] = report.bars_table(results()).splitlines()
    assert row == "| reads | rate, times joins | ≥ 20 | 10.5 (9..12) | no |"


def test_the_start_is_what_comes_before_the_first_turn() -> None:
    turn = Sample(rate=1, p50=0, p99=0, began=130.0)
    assert report.Took.of([Result("reads", {"Tandem": [turn]})], began=100.0, ended=400.0) == report.Took(300, 30)


def test_json_and_picture_are_written(tmp_path: Path) -> None:
    report.write_json(tmp_path / "results.json", results(), TOOK, quick=True)
    report.draw(tmp_path / "results.png", results())
    written = json.loads((tmp_path / "results.json").read_text())
    assert [it["name"] for it in written["results"]] == ["reads", "rebuild", "memory"]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
