"""Every error and warning that fastcap raises on purpose, in one tree.

Each class also is the built-in class that the documented calls raised in the same place, so code
that catches `ValueError` or `KeyError` today goes on working:

    FastcapError
    ├── ArgumentError (ValueError)           an argument outside its range
    ├── ArgumentTypeError (TypeError)        an argument of the wrong type
    ├── SiteNotFoundError (ValueError)       a name or pattern of no module of the model
    ├── NotCapturedError (KeyError)          a store has no value of this site
    ├── SelectionError (ValueError)          what was asked cannot be taken from this value
    │   ├── PositionError (IndexError)       a position out of range
    │   └── CastError (TypeError)            a dtype that cannot hold the values
    ├── UnsupportedTensorError (TypeError)   nested, sparse, quantised, meta, functorch tensors
    ├── UnsupportedModuleError (RuntimeError)  TorchScript, which runs no hooks
    ├── BatchError (TypeError)               a batch the model cannot be called with
    │   └── MissingInputError (KeyError)     a batch without an input that was asked for
    ├── ResultError (RuntimeError)           values that cannot be put together into one result
    ├── DeviceError (RuntimeError)           the model and `device` disagree, or a stream is busy
    │   └── DeviceMemoryError                staging does not fit on the accelerator
    ├── HostMemoryError (MemoryError)        host memory cannot be had or pinned
    │   └── ResultTooLargeError              the result cannot fit: refused before it is tried
    ├── LoadError (OSError)                  a model, tokenizer or file of tensors cannot be loaded
    ├── SaveError (OSError)                  a file could not be written; nothing partial is left
    ├── ArchiveError (OSError)               an archive, and a file call that failed
    │   ├── ArchiveWriteError                its writer is dead; what was committed is intact
    │   ├── ArchiveFormatError (ValueError)  not an archive, damaged, or of a newer version
    │   ├── ArchiveConfigError (ValueError)  made from another model, data or selection
    │   └── MissingSampleError (IndexError)  a sample that nobody has committed
    └── MissingExtraError (ImportError)      an optional package is needed

    FastcapWarning (UserWarning)             something was not captured, or looks wrong
"""

from __future__ import annotations

__all__ = [
    "ArchiveConfigError",
    "ArchiveError",
    "ArchiveFormatError",
    "ArchiveWriteError",
    "ArgumentError",
    "ArgumentTypeError",
    "BatchError",
    "CastError",
    "DeviceError",
    "DeviceMemoryError",
    "FastcapError",
    "FastcapWarning",
    "HostMemoryError",
    "LoadError",
    "MissingExtraError",
    "MissingInputError",
    "MissingSampleError",
    "NotCapturedError",
    "PositionError",
    "ResultError",
    "ResultTooLargeError",
    "SaveError",
    "SelectionError",
    "SiteNotFoundError",
    "UnsupportedModuleError",
    "UnsupportedTensorError",
]


class FastcapError(Exception):
    """Base of every error that fastcap raises on purpose."""


class ArgumentError(FastcapError, ValueError):
    """An argument is outside the range it can have."""


class ArgumentTypeError(FastcapError, TypeError):
    """An argument has the wrong type."""


class SiteNotFoundError(FastcapError, ValueError):
    """A site names no module of the model, or a pattern matches none."""


class NotCapturedError(FastcapError, KeyError):
    """A store has no value of this site: it is not one of its sites, or has not fired."""

    # KeyError prints the repr of its argument, quotes and escapes included.
    __str__ = Exception.__str__


class SelectionError(FastcapError, ValueError):
    """What was asked cannot be taken from the value a site produced."""


class PositionError(SelectionError, IndexError):
    """A position lies outside the sequence, or the value has no such dimension."""


class CastError(SelectionError, TypeError):
    """The dtype asked for cannot hold the values (complex to float, float to int)."""


class UnsupportedTensorError(FastcapError, TypeError):
    """A site produced a tensor whose bytes cannot be copied as they are."""


class UnsupportedModuleError(FastcapError, RuntimeError):
    """A site's module runs no hooks."""


class BatchError(FastcapError, TypeError):
    """A batch is of a kind the model cannot be called with."""


class MissingInputError(BatchError, KeyError):
    """A batch lacks an input that the call needs."""

    # KeyError prints the repr of its argument, quotes and escapes included.
    __str__ = Exception.__str__


class ResultError(FastcapError, RuntimeError):
    """The values of two batches cannot be rows of one result."""


class DeviceError(FastcapError, RuntimeError):
    """The model, the values and `device` do not fit together."""


class DeviceMemoryError(DeviceError):
    """Staging does not fit on the accelerator."""


class HostMemoryError(FastcapError, MemoryError):
    """Host memory could not be allocated or pinned."""


class ResultTooLargeError(HostMemoryError):
    """A result cannot fit in the memory that is available; nothing was allocated for it."""


class LoadError(FastcapError, OSError):
    """A model, a tokenizer or saved activations could not be loaded; has the next step."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class SaveError(FastcapError, OSError):
    """Activations could not be written; no partial file was left behind."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class ArchiveError(FastcapError, OSError):
    """An archive cannot be opened, read or written."""

    # OSError prints its number first, which says nothing to a reader.
    def __str__(self) -> str:
        return self.strerror or super().__str__()


class ArchiveWriteError(ArchiveError):
    """A file call failed, and the writer is dead. What was committed before is intact."""


class ArchiveFormatError(ArchiveError, ValueError):
    """Bytes that are no archive of a version that this fastcap reads."""


class ArchiveConfigError(ArchiveError, ValueError):
    """The archive was made from another model, other data or another selection."""


class MissingSampleError(ArchiveError, IndexError):
    """No intact group of the archive holds this sample."""


class MissingExtraError(FastcapError, ImportError):
    """An optional package is needed; the message names the command that installs it."""


class FastcapWarning(UserWarning):
    """Something was not captured, or looks like a mistake. The message says what to do."""
