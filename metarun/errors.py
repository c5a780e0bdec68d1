"""Everything that can end a run, with the exit code and the advice that go with it."""

from __future__ import annotations


class MetarunError(Exception):
    """A failure that the user can act on; its text is one line that says what to do."""

    exit_code = 1
    status = "failed"


class ConfigError(MetarunError, ValueError):
    """A setting that is unknown, malformed, out of range or contradicts another."""

    exit_code = 2


class DataError(MetarunError, ValueError):
    """A data set, archive or batch that cannot be used."""

    exit_code = 3


class CheckpointError(MetarunError, ValueError):
    """A checkpoint that is damaged, foreign or belongs to another configuration."""

    exit_code = 3


class DivergedError(MetarunError):
    """A loss, parameter or gradient stopped being finite."""

    exit_code = 4
    status = "diverged"


class StorageError(MetarunError, OSError):
    """An output folder that is full, read-only or gone."""

    exit_code = 5


class MemoryExhaustedError(MetarunError):
    """The device's memory does not hold what a run needs, however few tasks at a time."""

    exit_code = 6


class LostError(MetarunError):
    """A process that helped the run has died."""


class InUseError(MetarunError):
    """Another living process owns the run folder."""

    exit_code = 7


class SweepError(MetarunError):
    """A sweep ended, but some of its jobs did not."""

    exit_code = 8


class PreemptedError(MetarunError):
    """SIGTERM or SIGHUP arrived; a checkpoint was written and the same command goes on from it."""

    exit_code = 75
    status = "preempted"


class KeyboardStopError(MetarunError):
    """Ctrl-C arrived; a checkpoint was written and the same command goes on from it."""

    exit_code = 130
    status = "preempted"
