"""The error tree: everything that a user can cause, with the exit code that the CLI answers.

    SegDeployError (.hint)                                        exit 2
    ├── ConfigError
    │   └── UnknownNameError
    ├── DataError
    ├── CheckpointError
    ├── ArtifactError
    │   ├── ManifestError
    │   └── DigestMismatchError
    ├── ExportError
    │   ├── UnsupportedTargetError
    │   └── BuildError (.log: tail of the converter's log)
    ├── DownloadError          an index or file of a store cannot be fetched
    ├── RunLockedError         another process works in the run folder
    ├── TrainError             training cannot go on; the run folder is still resumable
    ├── BackendUnavailableError (hint = install line)             exit 4
    ├── ParityError, GateError                                    exit 1
    └── InconclusiveError                                         exit 3

A message says what was asked and what was found; `hint` says what to do. Anything outside this
tree is a bug and keeps its traceback (exit 70).
"""

from __future__ import annotations


class SegDeployError(Exception):
    """Base of all errors that a user can cause; `str()` gives the message, then the hint."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling; worker processes need them.
        return (_rebuild, (type(self), self.message, self.hint, self.__dict__))


def _rebuild(
    cls: type[SegDeployError], message: str, hint: str, state: dict[str, object]
) -> SegDeployError:
    error = cls.__new__(cls)
    SegDeployError.__init__(error, message, hint=hint)
    error.__dict__.update(state)
    return error


class ConfigError(SegDeployError):
    """A flag, TOML key or combination of settings is wrong."""


class UnknownNameError(ConfigError):
    """A name is in no table; the hint lists the nearest known ones."""


class DataError(SegDeployError):
    """An image, label or data set layout is missing, damaged or inconsistent."""


class CheckpointError(SegDeployError):
    """Weights are missing, damaged, unsafe or do not fit the model."""


class ArtifactError(SegDeployError):
    """A model folder is missing, incomplete or cannot be written."""


class ManifestError(ArtifactError):
    """`manifest.json` is unreadable, inconsistent or from a newer segdeploy."""


class DigestMismatchError(ArtifactError):
    """A file is not the one that the manifest promises."""


class ExportError(SegDeployError):
    """An export cannot be planned or built."""


class UnsupportedTargetError(ExportError):
    """The target exists, but not for this model or these options."""


class BuildError(ExportError):
    """A converter failed; `log` holds the tail of what it said."""

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.log}" if self.log else super().__str__()


class DownloadError(SegDeployError):
    """An index or file of a store cannot be fetched; the message names address and status."""


class RunLockedError(SegDeployError):
    """Another process works in the same run folder."""


class TrainError(SegDeployError):
    """Training cannot go on (lost rank, non-finite loss); the run stays resumable."""


class BackendUnavailableError(SegDeployError):
    """A package, driver or device is missing; the hint is the install line."""

    exit_code = 4


class ParityError(SegDeployError):
    """A candidate decides differently from its reference."""

    exit_code = 1


class GateError(SegDeployError):
    """A budget or regression check failed."""

    exit_code = 1


class InconclusiveError(SegDeployError):
    """The measurement is too noisy to tell."""

    exit_code = 3
