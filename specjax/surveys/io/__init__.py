"""What readers of survey files share: FITS, tables, recognising a file, and reading many."""
