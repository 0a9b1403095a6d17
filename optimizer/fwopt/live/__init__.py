"""Real servers, started or attached, and the client that replays a workload on them."""
