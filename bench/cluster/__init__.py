"""The operator's benchmark: a real control plane, simulated pods, and start times on a real node."""
