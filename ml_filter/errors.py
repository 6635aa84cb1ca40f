"""The errors that end a command with a reason instead of a traceback.

* MlFilterError            base of all, exit code 2
  + InputError             a source, file, column or output directory is not as expected
  + ConfigError            a setting, prompt or configuration file is wrong
  + EndpointError          the LLM endpoint cannot be reached, started or used
  + TooManyFailures        the work finished with more failures than tolerated, exit code 1
  + GateFailed             scores do not agree well enough with human gold to continue, exit code 1
"""


class MlFilterError(Exception):
    """An error that the user can act on."""

    exit_code = 2


class InputError(MlFilterError):
    """A source, file, column or output directory is not as expected."""


class ConfigError(MlFilterError):
    """A setting, prompt or configuration file is wrong."""


class EndpointError(MlFilterError):
    """The LLM endpoint cannot be reached, started or used."""


class TooManyFailures(MlFilterError):
    """The work finished and its output is complete, but the share of failures exceeds what the config tolerates."""

    exit_code = 1


class GateFailed(MlFilterError):
    """Agreement with human gold is too low or cannot be measured, so that the next stage must not start."""

    exit_code = 1
