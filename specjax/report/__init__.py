"""What a run reports: scores, tables, plots and descriptions."""
