"""Errors that a user can mend. Each is one sentence that names the config key or the peer, and what to do."""


class UserError(ValueError):
    """A mistake in the configuration or surroundings of a run. `launch.py` prints it without a traceback.

    Attributes:
        is_told: the server tells the user of it, so that another rank on the same console need not.
    """

    is_told = False


class PeerError(UserError):
    """Another process of the run stopped, is gone, or does not answer."""


class PayloadError(ValueError):
    """Bytes that are not a payload of the expected codec."""


class NonFiniteError(ValueError):
    """A tensor that is to be compressed holds NaN or Inf."""
