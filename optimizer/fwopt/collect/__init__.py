"""Measuring on the device at hand: steps of a whole engine, operators with torch; what comes of it is a profile."""
