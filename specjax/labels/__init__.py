"""Labels for the spectra of a survey, and who trains, validates, tests and stays unlabelled."""

from specjax.labels.matching import label_spectra
from specjax.labels.splits import Roles, SplitConfig, apply_roles, draw_roles, read_roles, split_table

__all__ = ["Roles", "SplitConfig", "apply_roles", "draw_roles", "label_spectra", "read_roles", "split_table"]
