"""The errors medgrpo raises on purpose. Each carries one message for a person: what, where, expected, what to do."""


class MedgrpoError(Exception):
    """Base of every error raised on purpose; the command line prints its message without a traceback."""

    exit_code = 1


class InputError(MedgrpoError):
    """Something the user gave (a file, a setting, a model) cannot be used as it is. Trying again does not help."""

    exit_code = 2


class TrainingAlarm(MedgrpoError):
    """Training produced something that makes going on pointless (NaN loss, empty completions). Not retried."""


class TrialPruned(TrainingAlarm):
    """A sweep's trial is plainly behind the others, so that its training was ended early. Not retried."""


class TrainingCrashed(MedgrpoError):
    """The training process ended without finishing (killed, out of memory, time limit). A retry resumes it."""


class DiskFull(MedgrpoError):
    """There is no space left on a disk. Worth a retry: others may have made room."""

    exit_code = 2


class ServiceUnreachable(MedgrpoError):
    """The Hub or an MLflow server did not answer. Worth a retry."""

    exit_code = 2
