import numpy as np
import pytest
from astropy.table import MaskedColumn

from specjax.catalogues.conditions import Condition
from specjax.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("text", "values", "holds"),
    [
        ("flag_sp == 0", [0, 1, 0], [True, False, True]),
        ("snr>30", [30.0, 30.1, np.nan], [False, True, False]),
        ("snr != 30", [30.0, 30.1, np.nan], [False, True, False]),  # NaN never fulfils a condition
        ("e_fe_h <= 1e-1", [0.1, 0.2, -0.1], [True, False, True]),
        ("flags & 8 == 0", [8, 7, 12], [False, True, False]),
        ("flags&12!=0", [8, 3, 4], [True, False, True]),
        ("survey == 'main'", ["main", "backup", "main "], [True, False, True]),
        ("survey != main", np.array([b"main", b"x", b""]), [False, True, True]),
        ("flag < 1", MaskedColumn([0, 0, 1], mask=[True, False, False]), [False, True, False]),
    ],
)
def test_where_conditions_hold(text, values, holds):
    values = values if isinstance(values, np.ndarray) else np.array(values)
    assert Condition.parse(text).holds(values).tolist() == holds


@pytest.mark.parametrize("text", ["flag", "flag = 0", "0 == flag", "a == ", "a == 0 and b == 1", ""])
def test_invalid_conditions_are_refused(text):
    with pytest.raises(ConfigError, match="is not a condition such as"):
        Condition.parse(text)


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("flag == good", [0, 1], "which holds numbers"),
        ("flag == 0", ["a", "b"], "which holds text"),
        ("flag > a", ["a", "b"], "which holds text"),
        ("flag & 1 == 0", [0.5, 1.0], "needs integers"),
    ],
)
def test_invalid_comparisons_are_refused(text, values, message):
    with pytest.raises(DataError, match=message):
        Condition.parse(text).holds(np.array(values))
