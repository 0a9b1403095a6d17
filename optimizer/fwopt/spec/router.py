"""How requests are spread over replicas."""

from __future__ import annotations

from typing import Literal

RouterPolicy = Literal["round_robin", "least_requests", "cache_aware"]

ROUTER_PACKAGE = "sglang-router==0.3.2"
"""What deploys `cache_aware`: SGLang's router, in front of any server with OpenAI's API. The three numbers are its
defaults, exported by name."""
CACHE_THRESHOLD = 0.3
"""A request follows its prefix where more than this share of its prompt went to that replica before."""
BALANCE_ABSOLUTE = 64
"""Load alone counts while the busiest replica has more than so many requests above the idlest one"""
BALANCE_RELATIVE = 1.5
"""and more than so many times as many."""
