"""The report's words in one sentence each; docs/metrics.md holds the full definitions."""

from __future__ import annotations

TERMS: dict[str, str] = {
    "TTFT": "Time to first token: from a request's arrival to its first output token, queueing included.",
    "TPOT": "Time per output token after the first: (last token - first token) / (output tokens - 1), per request.",
    "ITL": "Inter-token latency: the gap between two consecutive tokens, one value a gap.",
    "E2E": "End to end: from a request's arrival to its last token.",
    "queue": "From a request's arrival until the engine first schedules any of its tokens.",
    "SLO": "Service-level objective: a limit the deployment must keep, for example ttft:p99<2s.",
    "p99": "The value that 99 % of all requests stay below. A rejected request counts as infinitely slow.",
    "SLO capacity": "The highest multiple of this traffic at which every SLO still holds, found by scaling arrivals.",
    "headroom": "SLO capacity minus one: how much more of this traffic the deployment bears.",
    "drift": "What the latencies would be if every engine step took 5 % longer; near capacity, queues multiply it.",
    "goodput": "Finished requests per second that kept every per-request limit of the objective.",
    "cost": "All GPUs of the deployment, idle or busy, at the stated price, divided by the output tokens.",
    "measured": "Timed on the real device at that very shape.",
    "interpolated": "Between measured shapes of the same operator.",
    "bound": "A roofline floor: nothing was measured nearby, reality can only be slower.",
    "assumed": "A stated efficiency prior or literature figure: no measurement of this operator or scheme at all.",
    "simulated": "Every request of the trace replayed against the engine's scheduling rules, with operator times from "
    "the profile; no server was run.",
    "Pareto front": "The deployments that no other one beats on every axis at once.",
    "KL": "Mean Kullback-Leibler divergence from the bf16 model's next-token distribution, in nats per token.",
    "top-1": "Share of tokens whose most likely token is the same as the bf16 model's.",
    "replica": "One independent engine process behind the router.",
    "TP": "Tensor parallelism: one copy of the model sliced over this many GPUs.",
    "memory": "Weights, activations or one request's KV cache do not fit.",
    "roofline": "Even at the hardware's peak rates the objective cannot be met.",
}
