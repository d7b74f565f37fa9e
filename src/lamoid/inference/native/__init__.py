"""The CPU engine's kernels in C, and their binding through ctypes."""
