"""Plan and trials -> terminal, Markdown, one-file HTML, and why any one candidate was chosen or fell.

Text rendered from a Plan cannot drift from it: nothing here computes a result, it only says one.
"""

from fwopt.report.files import write

__all__ = ["write"]
