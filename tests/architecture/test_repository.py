"""What the repository says of itself is true: pages, commands, migrations."""

import itertools
import json
import re
import tomllib
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

import command_server.settings
import projector.settings
import query_server.settings
import relay.settings
from command_server.app import MIGRATIONS as WRITE_MIGRATIONS
from nemesis.faults import KINDS
from projector.app import MIGRATIONS as READ_MIGRATIONS
from tandem.feed.table import WRITE
from tandem.read_store.tables import READ
from tandem.runtime.settings import SECTIONS
from tools import configuration, contract, faults, metrics

ROOT = Path(__file__).parents[2]
SETTINGS = (
    command_server.settings.Settings,
    query_server.settings.Settings,
    projector.settings.Settings,
    relay.settings.Settings,
)


def test_the_configuration_page_is_what_the_settings_say() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == configuration.render(), "run make docs"


def test_the_contract_page_is_what_the_contract_says() -> None:
    assert (ROOT / "docs" / "contract.md").read_text() == contract.render(), "run make docs"


def test_the_metrics_page_is_what_the_services_have() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics.render(), "run make docs"


def test_the_faults_on_the_page_are_those_of_the_last_run() -> None:
    result = json.loads(faults.RESULT.read_text())
    page = faults.PAGE.read_text()
    assert page == faults.with_section(page, faults.render(result)), "run python -m tools.faults"
    assert result["violations"] == 0
    assert {it["name"]: it["bound"] for it in result["kinds"]} == {it.name: it.bound for it in KINDS}, "run make faults"


def test_every_setting_says_what_it_is() -> None:
    rows = [row for settings in SETTINGS for row in configuration.describe(settings)]
    assert len(rows) > 50
    assert [name for name, _, text in rows if not text] == []


def test_every_service_has_its_section() -> None:
    assert {settings.section for settings in SETTINGS} == set(SECTIONS)
    for settings in SETTINGS:
        assert settings.model_config.get("env_prefix") == f"TANDEM_{settings.section.upper()}_"


def targets(makefile: str = "Makefile") -> dict[str, str]:
    """The Makefile's targets and what `make help` says of them."""
    text = (ROOT / makefile).read_text()
    return dict(re.findall(r"^([a-z-]+):.*## (.+)$", text, re.MULTILINE))


def test_every_make_target_is_in_the_help() -> None:
    [phony] = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(phony.split()) == set(targets())


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda path: path.name,
)
def test_every_make_command_of_a_page_exists(page: Path) -> None:
    commands = re.findall(r"(?:^|`|\$ )make ([a-z-]+)", page.read_text(), re.MULTILINE)
    # One page is about a domain of its own, which has the Makefile that `tandem new` writes.
    own = page.name == "your-own-domain.md"
    there = targets("tandem/scaffold/templates/domain/Makefile.template" if own else "Makefile")
    assert set(commands) <= set(there)


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []


def migrations(folder: Path) -> list[Script]:
    """From the first to the newest."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "tandem/runtime/alembic"))
    config.set_main_option("version_locations", str(folder / "versions"))
    config.set_main_option("path_separator", "newline")
    return list(ScriptDirectory.from_config(config).walk_revisions())[::-1]


@pytest.mark.parametrize(
    ("engines", "domains", "last_of_one_line"),
    [(WRITE.engine, WRITE_MIGRATIONS, 16), (READ.engine, READ_MIGRATIONS, 13)],
    ids=["write", "read"],
)
def test_migrations_are_numbered_one_after_the_other(engines: Path, domains: Path, last_of_one_line: int) -> None:
    """In each line; up to the last of the one that both were once, in both together."""
    together = set()
    for folder in (engines, domains):
        found = migrations(folder)
        numbers = [it.revision for it in found]
        together |= {it for it in numbers if int(it) <= last_of_one_line}
        assert [int(it) for it in numbers if int(it) > last_of_one_line] == list(
            range(last_of_one_line + 1, int(numbers[-1]) + 1)
        )
        assert numbers == sorted(numbers)
        assert [it.down_revision for it in found] == [None, *numbers[:-1]]
        assert [Path(it.path).name[:5] for it in found] == [f"{number}_" for number in numbers]
        assert len(list((folder / "versions").glob("*.py"))) == len(found)
    assert together == {f"{number:04}" for number in range(1, last_of_one_line + 1)}


def test_pre_commit_fetches_nothing() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"repo: (\S+)", text)) == {"local"}
    assert set(re.findall(r"language: (\S+)", text)) == {"system"}


def test_every_package_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {re.split(r"[\[<>=!~ ;]", name)[0] for name in wanted} - {project["name"]} <= pinned
