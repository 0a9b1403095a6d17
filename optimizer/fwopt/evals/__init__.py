"""Task evals: a served model's answers to an eval set, graded, and compared item by item with a reference."""
