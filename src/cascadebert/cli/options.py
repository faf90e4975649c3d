"""Options of a command in dataclasses, one field per option."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses of options, and show Typer their fields.

    Args:
        command: takes arguments, each an option or a dataclass whose fields are options.

    Returns:
        The command with one keyword argument per option.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Size:
        ...     rows: int = 3
        >>> @grouped
        ... def show(size: Size, name: str) -> None:
        ...     print(name, size)
        >>> show(name="x", rows=5)
        x Size(rows=5)
        >>> list(inspect.signature(show).parameters)
        ['rows', 'name']
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(hints[parameter.name]):
            options = _parameters(kind)
            groups[parameter.name] = kind, [option.name for option in options]
            parameters += options
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        built = {
            name: kind(**{option: values.pop(option) for option in options if option in values})
            for name, (kind, options) in groups.items()
        }
        command(**built, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(kind: Any) -> list[Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]
