"""Tables of ratios that the benches fill row by row, printed at the end of the run."""

from __future__ import annotations

import pytest
from measure import OpenTable

TABLES = pytest.StashKey[dict[str, list[str]]]()


@pytest.fixture(scope="session")
def open_table(request: pytest.FixtureRequest) -> OpenTable:
    """A function from a title and a header to the lines of that table, to which tests append."""
    tables = request.config.stash.setdefault(TABLES, {})

    def open_(title: str, header: str) -> list[str]:
        return tables.setdefault(title, [header])

    return open_


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, lines in config.stash.get(TABLES, {}).items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
