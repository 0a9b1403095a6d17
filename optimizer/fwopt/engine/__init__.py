"""Reference engine: a small serving engine in torch, exact about what it times. See docs/engine.md.

`fwopt serve` runs it; nothing here is imported before that.
"""
