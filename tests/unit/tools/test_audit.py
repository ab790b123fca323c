"""The audit finds what a service knows, and says loudly when it could ask nobody. The answers are as OSV gives them."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.support.ports import free_port
from tools.audit import main

ADVISORY = {
    "id": "GHSA-462w-v97r-4m45",
    "summary": "Jinja2 sandbox escape via string formatting",
    "aliases": ["CVE-2019-10906", "PYSEC-2019-217"],
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI", "purl": "pkg:pypi/jinja2"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.10.1"}]}],
        }
    ],
}
LOCK = """\
idna==3.20 \\
    --hash=sha256:aa
    # via requests
jinja2==2.4.1 ; sys_platform == "linux" \\
    --hash=sha256:bb
"""
SAID = (
    "vulnerable: jinja2 2.4.1: GHSA-462w-v97r-4m45 CVE-2019-10906 PYSEC-2019-217: Jinja2 sandbox escape via string"
    " formatting (fixed in 2.10.1)"
)


class Service:
    """OSV's API on this machine, for the one advisory. answer: what it says to every request instead."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] | None = None
        self.asked: list[Any] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
                service.asked.append(asked)
                self._send({"results": [service.result(it) for it in asked]})

            def do_GET(self) -> None:
                assert self.path == f"/v1/vulns/{ADVISORY['id']}"
                self._send(ADVISORY)

            def _send(self, body: Any) -> None:
                status, content = service.answer or (200, json.dumps(body).encode())
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def result(query: Any) -> Any:
        """Its second page has the finding."""
        if query["package"] != {"name": "jinja2", "ecosystem": "PyPI"} or query["version"] != "2.4.1":
            return {}
        if "page_token" not in query:
            return {"next_page_token": "second"}
        return {"vulns": [{"id": ADVISORY["id"], "modified": "2024-09-24T21:01:06Z"}]}


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "requirements.lock").write_text(LOCK)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return tmp_path


def audit(project: Path, url: str, *options: str) -> tuple[int, list[str]]:
    said: list[str] = []
    code = main([f"--project={project}", f"--service={url}", *options], said.append)
    return code, said


def test_a_known_vulnerability_fails_and_says_what_mends_it(project: Path, service: Service) -> None:
    code, said = audit(project, service.url)
    assert (code, said) == (1, [SAID, "2 packages, 1 known vulnerabilities that nobody accepted"])
    assert len(service.asked) == 2, "all packages in one request, and one more for the second page"


def test_without_a_finding_all_is_well(project: Path, service: Service) -> None:
    (project / "requirements.lock").write_text(LOCK.replace("2.4.1", "3.1.6"))
    assert audit(project, service.url) == (0, ["2 packages, 0 known vulnerabilities that nobody accepted"])


def test_what_is_accepted_with_a_reason_passes_and_is_named_when_it_is_gone(project: Path, service: Service) -> None:
    (project / "pyproject.toml").write_text(
        '[tool.tandem.audit]\naccepted = { CVE-2019-10906 = "no template is a stranger\'s", CVE-2000-1 = "old" }\n'
    )
    code, said = audit(project, service.url)
    assert code == 0
    assert said == [
        SAID.replace("vulnerable:", "accepted (no template is a stranger's):"),
        "CVE-2000-1 is accepted and not found any more: take it out",
        "2 packages, 0 known vulnerabilities that nobody accepted",
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(None, "Connection refused"), ((503, b"away"), "answers 503"), ((200, b"<html>Log in</html>"), "Expecting value")],
    ids=["nobody listens", "unavailable", "a portal"],
)
def test_where_nobody_could_be_asked_it_says_so_and_only_strict_fails(
    answer: tuple[int, bytes] | None, reason: str, project: Path, service: Service
) -> None:
    service.answer = answer
    url = service.url if answer else f"http://127.0.0.1:{free_port()}"
    for options, expected in ((), 0), (("--strict",), 1):
        code, [said] = audit(project, url, *options)
        assert code == expected
        assert said.startswith("NOT AUDITED, so known vulnerabilities of 2 packages may be there: http://127.0.0.1:")
        assert reason in said


def test_a_request_that_the_service_does_not_understand_is_our_fault_and_fails(project: Path, service: Service) -> None:
    service.answer = (400, b'{"code":3,"message":"Invalid query."}')
    with pytest.raises(HTTPError, match="400") as caught:
        audit(project, service.url)
    caught.value.close()
