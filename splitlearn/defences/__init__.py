"""Defences: what is done to a tensor before it is encoded, or added to the client's loss, so that it tells less."""

from splitlearn.defences.defence import Defence

__all__ = ["Defence"]
