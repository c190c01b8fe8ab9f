# SPDX-License-Identifier: Apache-2.0
"""Every error the library raises on purpose; each says what was expected, what came and what to do.

GemmaryError
├── InputError            an argument, prompt or recipe value that cannot be used
│   └── ContextError      a prompt that does not fit the model's context
├── FileError             a file that is missing, damaged or of an unknown kind
│   └── CheckpointError   tensors missing, duplicate, of a wrong shape, or not finite
├── TrainingError         a training that cannot go on: numbers that are not finite, step after step
├── BusyError             a server whose queue is full
├── UnknownModelError     a name of a model or data set that resolves to nothing
│   └── GatedError        a download that waits for accepted terms
└── MissingExtraError     an optional dependency that is not installed
"""


class GemmaryError(Exception):
    """Base of all errors raised on purpose; the command line prints it on one line and exits with 2.

    >>> str(GemmaryError("expected a positive size, got 0: pass 1 or more"))
    'expected a positive size, got 0: pass 1 or more'
    """


class InputError(GemmaryError):
    """An argument, prompt or setting that cannot be used.

    >>> issubclass(InputError, GemmaryError)
    True
    """


class ContextError(InputError):
    """A prompt that does not fit the model's context.

    >>> issubclass(ContextError, InputError)
    True
    """


class FileError(GemmaryError):
    """A file that is missing, damaged, hostile or of an unknown kind.

    >>> issubclass(FileError, GemmaryError)
    True
    """


class CheckpointError(FileError):
    """A checkpoint whose tensors are missing, duplicate, of a wrong shape or not finite.

    >>> issubclass(CheckpointError, FileError)
    True
    """


class TrainingError(GemmaryError):
    """A training that cannot go on.

    >>> issubclass(TrainingError, GemmaryError)
    True
    """


class BusyError(GemmaryError):
    """A server whose queue is full; `seconds` says when to come back.

    >>> BusyError("expected room, got none: come back in 2 seconds", seconds=2).seconds
    2
    """

    def __init__(self, message: str, *, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class UnknownModelError(GemmaryError):
    """A name of a model or data set that resolves to nothing.

    >>> issubclass(UnknownModelError, GemmaryError)
    True
    """


class GatedError(UnknownModelError):
    """A download that waits until its terms are accepted; the message names them and where to accept.

    >>> issubclass(GatedError, UnknownModelError)
    True
    """


class MissingExtraError(GemmaryError):
    """An optional dependency that is not installed; the message holds the pip command.

    >>> str(MissingExtraError.of("the Keras engine", "Keras 3 and a backend", "jax"))
    "the Keras engine needs Keras 3 and a backend: pip install 'gemmary[jax]'"
    """

    @classmethod
    def of(cls, what: str, needs: str, extra: str) -> "MissingExtraError":
        """Build the message: what was asked for, what it needs, and the extra that brings it.

        >>> str(MissingExtraError.of("reading .h5 files", "h5py", "keras"))
        "reading .h5 files needs h5py: pip install 'gemmary[keras]'"
        """
        return cls(f"{what} needs {needs}: pip install 'gemmary[{extra}]'")
