"""A program of the soak: numbers its lines, and keeps in a file that outlives it how many it has written. Ends now and then, in all ways.

Usage: soak_writer.py COUNTS LIVES. COUNTS is the folder of those files; of so many bursts one is the last, 0: none is, and none comes.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path


def main() -> None:
    folder, lives = Path(sys.argv[1]), int(sys.argv[2])
    spawn = f"{os.getpid()}-{time.monotonic_ns()}"
    path = folder / f"{os.environ['PM3_NAME']} {spawn}"
    path.write_bytes(bytes(8))
    with path.open("r+b") as file:
        written = mmap.mmap(file.fileno(), 8)  # the kernel's, so that no signal can take back what was written there
    number = 0
    while lives:
        for _line in range(random.randint(1, 400)):
            os.write(1, b"%s %d\n" % (spawn.encode(), number))  # short enough to be written whole or not at all
            number += 1
            struct.pack_into("q", written, 0, number)
        if random.randrange(lives) == 0:
            end = random.choice((0, 1, 3, signal.SIGKILL, signal.SIGSEGV))
            if end > 3:
                os.kill(os.getpid(), end)
            sys.exit(end)
        time.sleep(random.uniform(0, 0.6))
    signal.pause()


if __name__ == "__main__":
    main()
