"""Numbers and labels as plain Python values, which every JSON writer accepts."""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from cascadebert.errors import InputError


def plain_number(value: object, what: str) -> float:
    """A number as a Python float, or as an int if it is integral; NumPy scalars are numbers too.

    Args:
        value: is the number.
        what: names it in the error.

    Raises:
        InputError: it is a boolean, or not a real number.

    >>> import numpy as np
    >>> plain_number(np.int64(2), "the speed-up"), plain_number(np.float32(0.5), "the drop")
    (2, 0.5)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{what} is {value!r}, which is not a number; give one such as 0.01")
    return int(value) if isinstance(value, Integral) else float(value)


def plain_label(value: object, what: str) -> str | int:
    """A label as a Python string or int.

    Args:
        value: is the name of a class, or its index.
        what: names it in the error.

    Raises:
        InputError: it is neither.

    >>> import numpy as np
    >>> plain_label(np.str_("spam"), "the label"), plain_label(np.int64(1), "the label")
    ('spam', 1)
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise InputError(f"{what} is {value!r}; give the name of a class or its index")


def make_plain(target: Any) -> None:
    """Replace the fields of a frozen dataclass, a label or numbers, by plain values.

    Args:
        target: is changed in place.

    Raises:
        InputError: a field is not a label or number.
    """
    for field in fields(target):
        convert = plain_label if field.name == "label" else plain_number
        what = f"{type(target).__name__}: the {field.name.replace('_', ' ')}"
        object.__setattr__(target, field.name, convert(getattr(target, field.name), what))
