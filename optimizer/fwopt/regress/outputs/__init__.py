"""A comparison as other programs read it: one module a format."""
