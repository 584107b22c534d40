from website.cells import Cell, split_cells

PAGE = """# Title

Text with `code`.

```python
a = 1
```

```json
{"not": "executed"}
```

```sh
echo hello
```
The end
"""


def test_code_is_executed_and_everything_else_is_text():
    cells = split_cells(PAGE)
    assert [cell.language for cell in cells] == ["markdown", "python", "markdown", "sh", "markdown"]
    assert cells[1].source == "a = 1\n"
    assert cells[3].notebook_source == "%%script sh -e\necho hello\n"


def test_nothing_of_a_page_is_lost():
    joined = "".join(cell.fenced for cell in split_cells(PAGE))
    assert joined.split() == PAGE.split()


def test_indented_code_is_text():
    assert [cell.language for cell in split_cells("- item\n\n  ```python\n  a\n  ```\n")] == ["markdown"]


def test_text_is_its_own_source():
    assert Cell("markdown", "text").fenced == Cell("markdown", "text").notebook_source == "text"
