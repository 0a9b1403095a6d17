"""`fwopt speculation`: how many tokens a step gives when something guesses ahead, on a workload's own text."""
