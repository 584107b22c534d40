"""Scores, tables, plots and descriptions of models and runs."""
