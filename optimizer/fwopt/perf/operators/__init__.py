"""One operator a file: a table of the profile -> seconds with provenance for any shape."""
