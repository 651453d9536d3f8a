"""The library's own exceptions. A wrong argument is a `ValueError` or `TypeError`; these are for the rest."""


class RecordingError(RuntimeError):
    """The run cannot be recorded rightly; the message names the fix. Raised before training starts where possible."""


class TrajectoryError(ValueError):
    """A trajectory on disk is damaged, incomplete, newer than this version, or belongs to another model or dataset."""


class UnsupportedError(ValueError):
    """The model, optimizer or loss has no adjoint here; the message lists what is supported."""
