import pytest
from nbclient.exceptions import CellExecutionError

from website.cells import Cell, split_cells
from website.notebook import as_notebook, executed
from website.outputs import rendered

PAGE = """Text

```python
print("one")
```

```sh
echo two
echo $PWD/three >&2
```

```python
{"three": 3}
```
"""


def texts(notebook):
    return [
        "".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_cells_run_once_in_a_folder_that_nothing_names(tmp_path):
    cells = split_cells(PAGE)
    notebook = executed(cells, tmp_path)
    one, two, three = texts(notebook)
    assert one == "one\n"
    assert sorted(two.split()) == ["three", "two"]
    assert three == "{'three': 3}"
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text().replace("one", "kept"))
    assert texts(executed(cells, tmp_path))[0] == "kept\n"


def test_a_command_that_fails_ends_the_build():
    with pytest.raises(CellExecutionError):
        executed([Cell("sh", "false\necho no\n")], None)


def output(**fields):
    return {"output_type": "display_data", "data": fields}


def rendered_with(*outputs):
    cells = [Cell("python", "a\n")]
    notebook = as_notebook(cells)
    notebook.cells[0]["outputs"] = list(outputs)
    return rendered(cells, notebook, "page")


def test_text_follows_its_cell_whole_and_without_colours():
    text, pictures = rendered_with({"text": "\x1b[1mone\x1b[0m\n"}, {"text": "two\n"})
    assert text.index("```python\na\n```") < text.index("one\ntwo")
    assert "\x1b" not in text
    assert pictures == {}


def test_pictures_are_files_and_tables_stay_tables():
    text, pictures = rendered_with(
        output(**{"image/png": "aGVsbG8=", "text/plain": "<Figure>"}),
        output(**{"text/html": "<style>p {}</style>\n<table>\n\n<tr></tr></table>", "text/plain": "rows"}),
    )
    assert pictures == {"page-1.png": b"hello"}
    assert "(page-1.png)" in text
    assert "<table>\n<tr></tr></table>" in text
    assert "Figure" not in text
    assert "style" not in text


def test_without_outputs_a_page_is_as_it_was():
    cells = split_cells(PAGE)
    assert rendered(cells, as_notebook(cells), "page")[0].split() == PAGE.split()
