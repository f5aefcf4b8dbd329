"""Stands in front of a server that cannot be asked, and counts what goes through.

``python web_relay.py PORT`` prints the port it listens on, and then answers every line with its counts. Requests are
counted by their first lines: readers of frames send no bodies, and wait for an answer before they ask again.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading

BLOCK = 1 << 18
FIRST_LINE = b" HTTP/1.1\r\n"


class Relay:
    """Listens, and connects each client to the server."""

    def __init__(self, port: int) -> None:
        self.target = ("127.0.0.1", port)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.requests = self.connections = self.bytes = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def count(self, requests: int = 0, connections: int = 0, received: int = 0) -> None:
        with self.lock:
            self.requests += requests
            self.connections += connections
            self.bytes += received

    def accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            self.count(connections=1)
            server = socket.create_connection(self.target)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.forth, args=(client, server), daemon=True).start()
            threading.Thread(target=self.back, args=(server, client), daemon=True).start()

    def forth(self, client: socket.socket, server: socket.socket) -> None:
        tail = b""
        try:
            while data := client.recv(BLOCK):
                self.count(requests=(tail + data).count(FIRST_LINE))
                tail = data[1 - len(FIRST_LINE) :]
                server.sendall(data)
        except OSError:
            pass
        end(server)

    def back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(BLOCK):
                self.count(received=len(data))
                client.sendall(data)
        except OSError:
            pass
        end(client)
        server.close()


def end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    relay = Relay(int(sys.argv[1]))
    print(json.dumps({"port": relay.listener.getsockname()[1]}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"counts": [relay.requests, relay.connections, relay.bytes]}), flush=True)
