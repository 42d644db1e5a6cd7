"""Values and decisions.

Nothing here does I/O, reads a clock, logs, or draws a random number by itself: functions get ``now`` and, where they
need one, a random source. The outcome is *returned* as a verdict; the caller acts on it and logs it once.
"""
