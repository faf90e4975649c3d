"""What can go wrong, one class for each thing a caller may want to catch.

Every message names the cause, the offending value and the remedy, in one line. Each class is also
one that callers already catch: ValueError for bad input, OSError for bad files, ImportError for a
missing package.
"""

from __future__ import annotations


class CascadeError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(CascadeError, ValueError):
    """Rows, columns, files or arguments that cannot be used as given."""


class LabelMismatchError(InputError):
    """Two sets of label names that should be one."""


class ArtifactError(CascadeError, OSError):
    """A saved cascade or checkpoint that is missing, damaged or not of a known kind."""


class DamagedError(ArtifactError):
    """A file of a saved cascade that is missing or is not what was saved."""


class ExportError(CascadeError, RuntimeError):
    """A model whose exported graph does not give the logits of the original."""


class TargetError(CascadeError, ValueError):
    """A target that no thresholds meet on the given rows."""


class TrainingError(CascadeError, RuntimeError):
    """A training that cannot go on, or what it left that does not fit what is asked now."""


class MissingDependencyError(CascadeError, ImportError):
    """An optional package that the call needs and that is not installed."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f'pip install "cascadebert[{extra}]"'
        )
        self._arguments = (package, purpose, extra)

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str, str]]:
        return type(self), self._arguments


class CascadeWarning(UserWarning):
    """Something that works, but probably not as intended."""


def first_line(error: BaseException) -> str:
    r"""The first line of a library's error, short enough to be quoted in one of this package.

    >>> first_line(ValueError("no such option\nsee the manual"))
    'no such option'
    >>> first_line(MemoryError())
    'MemoryError'

    Args:
        error: its text is cut to 200 characters; without a text its class is named.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip()[:200]
