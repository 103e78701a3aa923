"""What goes wrong when a mixer is asked for."""


class UnknownMixerError(LookupError):
    """No mixer is registered under the name, or for the config, that was asked for."""


class MixerConfigError(ValueError):
    """A mixer's config has a value that no attention could take."""


class NoStepError(NotImplementedError):
    """A mixer that needs the whole sequence was asked to go token by token."""


class StateFullError(IndexError):
    """A state that is exact for a given number of tokens was handed one more."""
