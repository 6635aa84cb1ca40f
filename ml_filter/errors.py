"""Every error a user can meet.

- MlFilterError                 something the user can act on; `exit_code` is the command's
  - InputError                  a source, file, column or directory is not what was asked for
  - ConfigError                 a setting, prompt or configuration file is wrong
  - EndpointError               the LLM endpoint cannot be reached, started or used at all
  - TooManyFailures             the work finished, with more failures than tolerated (exit code 1)
  - GateFailed                  scores agree too little with human gold to go on (exit code 1)
"""


class MlFilterError(Exception):
    """Base of all errors that end a command with a reason instead of a traceback."""

    exit_code = 2


class InputError(MlFilterError):
    """A source, file, column or output directory is not what was asked for."""


class ConfigError(MlFilterError):
    """A setting, a prompt or a configuration file is wrong."""


class EndpointError(MlFilterError):
    """The LLM endpoint cannot be reached, started or used at all."""


class TooManyFailures(MlFilterError):
    """The work finished and is on disk, but more of it failed than the configuration tolerates."""

    exit_code = 1


class GateFailed(MlFilterError):
    """Scores agree too little with human gold, or that cannot be told, so what builds on them must not start."""

    exit_code = 1
