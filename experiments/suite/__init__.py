"""The claims of the paper, and questions beyond it: each a table, a plot and sentences."""
