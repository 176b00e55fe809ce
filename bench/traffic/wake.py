"""What one wake-up costs: a byte there and back through pipes, between two processes pinned to two cores.

    python -m bench.traffic.wake 0 1

The one figure that says how far a forwarder in userspace can go on a machine; machines differ tenfold in it.
"""

from __future__ import annotations

import os
import sys
import time

from bench.traffic.cue import say_result

# Ours
WARM_UP = 200
ROUND_TRIPS = 2000
BATCH = 50  # the median of batches: a moment stolen by somebody else does not count


def main() -> None:
    """Prints `wake_us`, the median round trip in microseconds between the two cores named."""
    first, second = (int(argument) for argument in sys.argv[1:3])
    say_result({"wake_us": wake_us(first, second)})


def wake_us(first: int, second: int) -> float:
    """The median round trip in microseconds."""
    there_read, there_write = os.pipe()
    back_read, back_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(there_write)
        os.sched_setaffinity(0, {second})
        while octet := os.read(there_read, 1):
            os.write(back_write, octet)
        os._exit(0)
    os.close(there_read)
    os.sched_setaffinity(0, {first})
    for _ in range(WARM_UP):
        _round_trip(there_write, back_read)
    batches = sorted(_batch_us(there_write, back_read) for _ in range(ROUND_TRIPS // BATCH))
    os.close(there_write)  # the child reads the end of the pipe and leaves
    os.waitpid(child, 0)
    return batches[len(batches) // 2]


def _batch_us(write_to: int, read_from: int) -> float:
    began_ns = time.perf_counter_ns()
    for _ in range(BATCH):
        _round_trip(write_to, read_from)
    return (time.perf_counter_ns() - began_ns) / BATCH / 1000


def _round_trip(write_to: int, read_from: int) -> None:
    os.write(write_to, b"\0")
    os.read(read_from, 1)


if __name__ == "__main__":
    main()
