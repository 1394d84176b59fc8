"""What can go wrong with a conversion, each as one sentence that says what to do next. Whoever calls over HTTP meets
none of these but `InvalidHeader`, which is with the header.
"""


class CannotConvert(Exception):
    """What was given cannot be converted as it stands: nothing was written."""


class UnusableCheckpoint(CannotConvert):
    """The input is no checkpoint that can be read: no safetensors, shards missing, an index that does not say what the
    shards hold, numbers that the format cannot hold."""


class UnusableOption(CannotConvert):
    """An option that cannot be meant for this format or this checkpoint."""


class UnusableOutput(CannotConvert):
    """The place to write to cannot be meant: something is there, it is the input itself, or its folder is missing."""


class ConversionFailed(Exception):
    """The work could not be done; what was in the output's place still is."""


class OutputFailed(ConversionFailed):
    """No room, or another run writes to the same place."""


class ChangedMeanwhile(ConversionFailed):
    """The checkpoint changed while it was read."""


class Overflowed(ConversionFailed):
    """Numbers became infinite, and the conversion was to fail then."""
