"""`fwopt bench`: is this build slower than that one, with evidence either way (docs/bench.md)."""
