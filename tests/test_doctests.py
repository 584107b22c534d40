"""The examples in docstrings."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import specjax

ROOT = Path(specjax.__file__).parent
EXAMPLES = sorted(
    ".".join(("specjax", *path.relative_to(ROOT).with_suffix("").parts))
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_what_they_show(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted
    assert not result.failed
