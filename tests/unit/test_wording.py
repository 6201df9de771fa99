"""Documentation, messages and comments keep to the plain English of the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import REPOSITORY

# Idioms and private metaphors that stood where the field has a word, and what to say.
WORDS = {
    r"yardsticks?": "reference method",
    r"rungs?|ladders?|climb\w*": "refinement level, or refine",
    r"one voice": "rank 0 logs",
    r"says? so": "what it says: a column, a warning, a value",
    r"in no interval": "outside of all intervals",
    r"many of them": "several",
    r"is told by|are told by|hears of": "is measured by, is called with",
    r"cannot be told|can't be told|told apart": "cannot be distinguished",
    r"by way of": "through",
    r"what is there": "what exists",
    r"binomial lea(f|ves)": "binomial observations",
}
TEXTS = [
    *(REPOSITORY / name for name in ("README.md", "config/README.md", "CONTRIBUTING.md", "tests/benchmarks/README.md")),
    *sorted((REPOSITORY / "workflow").rglob("*.json")),
    *sorted((REPOSITORY / "workflow").rglob("*.md")),
    *sorted((REPOSITORY / "workflow").rglob("*.smk")),
    *sorted((REPOSITORY / "epivi").rglob("*.py")),
]


def found(text: str, words: str) -> list[str]:
    """Where the words stand, lines of prose joined, so that a line break hides nothing."""
    joined = re.sub(r"\s*\n\s*#?\s*", " ", text)
    return [joined[max(0, at.start() - 40) : at.end() + 40] for at in re.finditer(rf"\b({words})\b", joined, re.I)]


@pytest.mark.parametrize("words", WORDS)
def test_idioms_do_not_come_back(words: str) -> None:
    where = [
        f"{path.relative_to(REPOSITORY)}: {place}" for path in TEXTS for place in found(Path.read_text(path), words)
    ]
    assert where == [], f"say {WORDS[words]}"


def test_a_line_break_hides_nothing() -> None:
    assert found("the record says\n    # so", "says? so") == ["the record says so"]
    assert found("the recordings always sound", "says? so") == []
