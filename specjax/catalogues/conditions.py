"""Simple conditions on a table's columns, as an astronomer writes them: "flag_sp == 0", "snr > 30"."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """One comparison of a column, perhaps of some of its bits, with a number or a text.

    Attributes:
      text: as it was written.
      column: the column's name.
      bits: mask that the column is combined with first, or None.
      compare: "==", "!=", "<=", ">=", "<" or ">".
      value: what it is compared with.
    """

    text: str
    column: str
    bits: int | None
    compare: str
    value: float | str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The condition that `text` says: COLUMN OP VALUE, or COLUMN & BITS OP VALUE.

        Raises:
          ConfigError: it says something else.
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
        """(n,) where the column's values fulfil it; masked values and NaN fulfil nothing.

        Raises:
          DataError: a number compared with text, or bits of what is not an integer.
        """
        known = ~np.broadcast_to(np.asarray(getattr(values, "mask", False)), np.shape(values))
        array = np.ma.getdata(values)
        is_text = array.dtype.kind in "SUO"
        if is_text != isinstance(self.value, str) or (is_text and self.compare not in ("==", "!=")):
            kind = "text" if is_text else "numbers"
            raise DataError(f"{self.text!r} cannot be said of column {self.column}, which holds {kind}")
        if is_text:
            array = np.array([_text(item) for item in array.tolist()], dtype=np.str_)
        elif array.dtype.kind == "f":
            known = known & np.isfinite(array)
        if self.bits is not None:
            if array.dtype.kind not in "iub":
                raise DataError(f"{self.text!r} needs integers in column {self.column}")
            array = array.astype(np.int64) & self.bits
        return known & np.asarray(_COMPARE[self.compare](array, self.value), dtype=bool)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def _text(item: Any) -> str:
    return (item.decode(errors="replace") if isinstance(item, bytes) else str(item)).strip()
