"""fwopt: a recorded LLM workload in, a deployment config and the evidence for it out."""

__version__ = "0.1.0"
