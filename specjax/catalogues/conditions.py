"""Parse and apply conditions on the columns of a table, such as "flag_sp == 0" or "snr > 30"."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from specjax.errors import ConfigError, DataError
from specjax.typing import BoolArray

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(
    r"""\s*([A-Za-z_]\w*)\s*(?:&\s*(\d+)\s*)?(==|!=|<=|>=|<|>)\s*('[^']*'|"[^"]*"|[^\s=<>!&'"]+)\s*"""
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A comparison of a column, or of some of its bits, with a number or a text.

    Attributes:
        text: the condition as written.
        column: name of the column.
        bits: bit mask applied to the column first, or None.
        compare: "==", "!=", "<=", ">=", "<" or ">".
        value: the number or text to compare with.
    """

    text: str
    column: str
    bits: int | None
    compare: str
    value: float | str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse COLUMN OP VALUE or COLUMN & BITS OP VALUE.

        Raises:
            ConfigError: the text has neither form.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"{text!r} is not a condition such as 'flag_sp == 0', 'snr > 30' or 'flags & 8 == 0'"
            )
        column, bits, compare, value = found.groups()
        return cls(
            text=text.strip(),
            column=column,
            bits=None if bits is None else int(bits),
            compare=compare,
            value=_value(value),
        )

    def holds(self, values: Any) -> BoolArray:
        """Return (n,) where the values of the column fulfil the condition; masked values and NaN never do.

        Raises:
            DataError: a number is compared with text, or bits are taken of something other than integers.
        """
        known: BoolArray = ~np.broadcast_to(np.asarray(getattr(values, "mask", False)), np.shape(values))
        array = np.ma.getdata(values)
        is_text = array.dtype.kind in "SUO"
        if is_text != isinstance(self.value, str) or (is_text and self.compare not in ("==", "!=")):
            kind = "text" if is_text else "numbers"
            raise DataError(f"{self.text!r} cannot be applied to column {self.column}, which holds {kind}")
        if is_text:
            array = np.array([_text(item) for item in array.tolist()], dtype=np.str_)
        elif array.dtype.kind == "f":
            known = known & np.isfinite(array)
        if self.bits is not None:
            if array.dtype.kind not in "iub":
                raise DataError(f"{self.text!r} needs integers in column {self.column}")
            array = array.astype(np.int64) & self.bits
        fulfilled: BoolArray = np.asarray(_COMPARE[self.compare](array, self.value), dtype=bool)
        return known & fulfilled


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def _text(item: Any) -> str:
    return (item.decode(errors="replace") if isinstance(item, bytes) else str(item)).strip()
