"""`fwopt record`: a reverse proxy that writes the trace of what passes through it.

`proxy` moves bytes and knows HTTP; `exchange` reads along and knows what one request was; `writer` keeps the file
whole, whatever happens to the process.
"""
