"""Kernel variants for the shapes that a workload really produces."""
