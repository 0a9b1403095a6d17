"""A plan held against a real server: representative slice, measured beside promised, causes, calibration."""
