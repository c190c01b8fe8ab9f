# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md is what the app says of itself."""

from pathlib import Path

from gemmary.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_as_the_app_is() -> None:
    remedy = "docs/cli.md is stale: .venv/bin/python -m gemmary.cli.reference > docs/cli.md"
    assert PAGE.read_text("utf-8") == reference(), remedy
