"""Values and decisions.

Nothing here does I/O, reads a clock, logs, or draws randomness by itself: every function gets ``now`` and, where it
needs chance, a random source. What happens is *returned* as a verdict; the caller acts on it and logs it once.
"""
