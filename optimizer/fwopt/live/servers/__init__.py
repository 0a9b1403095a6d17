"""Engines that can be started: one module each, one line here."""

SERVERS: dict[str, str] = {}
"""Engine name -> `module:class` of a `Server`."""
