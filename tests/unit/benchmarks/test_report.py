import json
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


def test_the_table_says_rates_latencies_shares_and_whether_bars_hold() -> None:
    table = report.table(results())
    assert "10,500    (9,000..12,000)" in table
    assert "1.00     4.00  0.400: server 75%, load 25%" in table
    assert "DOES NOT HOLD  rate, times joins: 10.5 (9..12)" in table
    assert "query_server                            80 (80..80) MiB" in table


def test_json_and_picture_are_written(tmp_path: Path) -> None:
    report.write_json(tmp_path / "results.json", results(), quick=True)
    report.draw(tmp_path / "results.png", results())
    written = json.loads((tmp_path / "results.json").read_text())
    assert [it["name"] for it in written["results"]] == ["reads", "rebuild", "memory"]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
