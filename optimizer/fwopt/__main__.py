"""`python -m fwopt`."""

from fwopt.cli.app import main

main()
