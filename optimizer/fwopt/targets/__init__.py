"""What is deployed, and on what: models from their config.json, GPUs from NVML or the catalogue."""

from fwopt.targets.hardware import load_hardware
from fwopt.targets.models import load_model

__all__ = ["load_hardware", "load_model"]
