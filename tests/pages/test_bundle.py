"""What a browser has to fetch, and what the pages are made of."""

import gzip
import json
import re

import pytest

from shop.cli import SHOP
from tests.support.pages import ROOT

MOST_BYTES = 150 * 1024
MOST_PICTURE_BYTES = 60 * 1024
FOLDER = SHOP.pages


def test_all_that_a_browser_fetches_is_small_and_comes_from_one_place() -> None:
    assert FOLDER is not None
    if not (FOLDER / "index.html").is_file():
        pytest.skip("the pages are not built: make pages")
    files = [it for it in FOLDER.rglob("*") if it.is_file()]
    assert sum(len(gzip.compress(it.read_bytes())) for it in files) < MOST_BYTES
    for page in FOLDER.glob("*.html"):
        text = page.read_text()
        assert re.findall(r'(?:src|href)="([^/"][^"]*)"', text) == [], "all of it is at the page's own address"
        assert re.findall(r"<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=", text) == [], "nothing is within the page"


def test_packages_are_pinned_with_hashes_and_the_lock_file_names_no_registry() -> None:
    package = json.loads((ROOT / "pages" / "package.json").read_text())
    wanted = package["dependencies"] | package["devDependencies"]
    assert [it for it in wanted.values() if not re.fullmatch(r"\d+\.\d+\.\d+", it)] == []
    packages = json.loads((ROOT / "pages" / "package-lock.json").read_text())["packages"]
    installed = {name: it for name, it in packages.items() if name}
    assert {f"node_modules/{it}" for it in wanted} <= installed.keys()
    assert [name for name, it in installed.items() if not it.get("integrity", "").startswith("sha512-")] == []
    assert [name for name, it in installed.items() if "resolved" in it] == []


def test_the_pictures_of_the_docs_are_there_and_small() -> None:
    shown = re.findall(r"\((pictures/[^)]+)\)", (ROOT / "docs" / "pages.md").read_text())
    files = {str(it.relative_to(ROOT / "docs")): it.stat().st_size for it in (ROOT / "docs" / "pictures").iterdir()}
    assert sorted(shown) == sorted(files)
    assert [name for name, size in files.items() if size >= MOST_PICTURE_BYTES] == [], "make pictures"
