"""What the documentation site adds to MkDocs: executed tutorials, pages from outside docs, and a gallery."""
