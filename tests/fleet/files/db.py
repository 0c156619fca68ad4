"""A database stand-in: slow to come up, then accepts connections on PORT."""

from __future__ import annotations

import os
import socket
import time

time.sleep(0.3)
with socket.create_server(("127.0.0.1", int(os.environ["PORT"]))) as listener:
    while True:
        listener.accept()[0].close()
