"""Every error and warning that fastcap raises on purpose, in one tree.

Each class is also the built-in class that the synchronous hook recipe raises in the same place, so
code that catches `ValueError` or `KeyError` keeps working:

    FastcapError
    ├── ArgumentError (ValueError)           an argument outside its range
    ├── ArgumentTypeError (TypeError)        an argument of the wrong type
    ├── SiteNotFoundError (ValueError)       a name or pattern that matches no module
    ├── NotCapturedError (KeyError)          a store has no value of this site
    ├── SelectionError (ValueError)          the selection does not fit this value
    │   ├── PositionError (IndexError)       a position out of range
    │   └── CastError (TypeError)            a dtype that cannot hold the values
    ├── UnsupportedTensorError (TypeError)   sparse, quantised, meta, functorch tensors
    ├── UnsupportedModuleError (RuntimeError)  TorchScript, which runs no hooks
    ├── BatchError (TypeError)               a batch the model cannot be called with
    │   ├── MissingInputError (KeyError)     a batch without an input that was asked for
    │   └── CollationError (RuntimeError)    samples that cannot be stacked into a batch
    ├── ResultError (RuntimeError)           values that do not fit into one result
    ├── DeviceError (RuntimeError)           the model and `device` disagree, or a stream is busy
    │   └── DeviceMemoryError                staging does not fit on the accelerator
    ├── HostMemoryError (MemoryError)        host memory cannot be allocated or pinned
    │   └── ResultTooLargeError              the result cannot fit: refused before it is tried
    ├── LoadError (OSError)                  a model, tokenizer or file of tensors cannot be loaded
    ├── SaveError (OSError)                  a file could not be written; nothing partial is left
    ├── ArchiveError (OSError)               an archive, and a file call that failed
    │   ├── ArchiveWriteError                its writer is dead; what was committed is intact
    │   ├── ArchiveFormatError (ValueError)  not an archive, damaged, or of a newer version
    │   ├── ArchiveConfigError (ValueError)  made from another model, data or selection
    │   └── MissingSampleError (IndexError)  a sample that is not committed
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
    "CollationError",
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
    """An argument is out of range."""


class ArgumentTypeError(FastcapError, TypeError):
    """An argument has the wrong type."""


class SiteNotFoundError(FastcapError, ValueError):
    """A site or pattern matches no module of the model."""


class NotCapturedError(FastcapError, KeyError):
    """A store has no value of this site: it is not one of its sites, or has not fired."""

    # KeyError prints the repr of its argument, quotes and escapes included.
    __str__ = Exception.__str__


class SelectionError(FastcapError, ValueError):
    """The selection does not fit the value a site produced."""


class PositionError(SelectionError, IndexError):
    """A position lies outside the sequence, or the value has no such dimension."""


class CastError(SelectionError, TypeError):
    """The requested dtype cannot hold the values (complex to float, float to int)."""


class UnsupportedTensorError(FastcapError, TypeError):
    """A tensor whose bytes cannot be copied as they are, such as a sparse one or a `DTensor`."""


class UnsupportedModuleError(FastcapError, RuntimeError):
    """A site's module runs no hooks."""


class BatchError(FastcapError, TypeError):
    """The model cannot be called with this kind of batch."""


class MissingInputError(BatchError, KeyError):
    """A batch lacks an input that the call needs."""

    # KeyError prints the repr of its argument, quotes and escapes included.
    __str__ = Exception.__str__


class CollationError(BatchError, RuntimeError):
    """Samples cannot be stacked into a batch; names the sample, its key and a way out."""


class ResultError(FastcapError, RuntimeError):
    """The values of two batches do not fit into one result."""


class DeviceError(FastcapError, RuntimeError):
    """The model, its values and `device` do not match."""


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
    """A file operation failed, and the writer is dead. What was committed is intact."""


class ArchiveFormatError(ArchiveError, ValueError):
    """Not an archive, damaged, or of a version this fastcap cannot read."""


class ArchiveConfigError(ArchiveError, ValueError):
    """The archive was made from another model, other data or another selection."""


class MissingSampleError(ArchiveError, IndexError):
    """No intact group of the archive holds this sample."""


class MissingExtraError(FastcapError, ImportError):
    """An optional package is needed; the message names the command that installs it."""


class FastcapWarning(UserWarning):
    """Something was not captured, or looks like a mistake. The message says what to do."""
