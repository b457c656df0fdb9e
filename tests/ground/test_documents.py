"""README and docs say what the code does: settings, codes, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ltx.errors import FAULTS, ConfigError, LockHeld, StateUnusable
from sandbox.client import ROOT
from tests.ground.test_settings import DEFAULTS, NEEDED

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def rows() -> dict[str, list[str]]:
    """The README's table rows whose first cell is one or more names in backticks, by name."""
    cells = [re.split(r" *\| *", line.strip("| ")) for line in README.splitlines() if "|" in line]
    names = [(re.findall(r"`(\w+)`", row[0]), row[1:]) for row in cells]
    return {name: row for found, row in names for name in found}


def test_the_readme_tells_of_every_setting_with_its_default() -> None:
    told = rows()
    for name in NEEDED:
        assert told[name][0] == "needed", name
    for name, (default, _) in DEFAULTS.items():
        shown = told[name][0].strip("`")
        assert shown == default or (not default and "`" not in told[name][0][:1]), name


def test_the_readme_tells_of_every_error_code_and_whether_it_may_be_tried_again() -> None:
    told = rows()
    for code, fault in FAULTS.items():
        assert told[code][0] == ("yes" if fault.retryable else "no"), code


def test_readme_and_unit_know_every_exit_code() -> None:
    sentence = README.partition("Exit codes: ")[2].partition("`STATE_DIR`")[0]
    codes = {kind.exit_code for kind in (ConfigError, StateUnusable, LockHeld)}
    assert {int(code) for code in re.findall(r"\b\d+\b", sentence)} == {0, 1, 2, *codes}
    unit = (ROOT / "systemd" / "ltx-worker.service").read_text()
    assert f"RestartPreventExitStatus={ConfigError.exit_code}\n" in unit


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]
