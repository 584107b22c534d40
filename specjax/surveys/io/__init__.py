"""Shared by the readers: FITS, tables, recognising a file, reading many files, duplicates and S/N."""
