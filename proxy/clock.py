"""The only module that reads clocks; everywhere else time is an argument.

``monotonic_ns`` orders and measures (never steps, no meaning across machines or reboots); ``unix_ns`` is
for people and for files.  Both return integer nanoseconds.
"""

from time import monotonic_ns
from time import time_ns as unix_ns

__all__ = ["monotonic_ns", "unix_ns"]
