"""A web server that cannot live without its databases: it ends at once when one of DB_PORTS refuses it."""

from __future__ import annotations

import http.server
import os
import socket

for port in os.environ["DB_PORTS"].split():
    socket.create_connection(("127.0.0.1", int(port)), 5).close()
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), http.server.SimpleHTTPRequestHandler).serve_forever()
