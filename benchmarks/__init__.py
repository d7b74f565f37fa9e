"""Lamoid beside its peers: each benchmark runs them in turn in one process, several times, and prints medians and ratios."""
