"""The guarantees of docs/operations.md: each names a test, and the test exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_guarantee_names_tests_that_exist() -> None:
    _, _, text = (ROOT / "docs/operations.md").read_text().partition("## What is guaranteed")
    rows = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")][2:]
    code = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)", code))
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rsplit("|", 2)[1])
        assert named and set(named) <= there, row
