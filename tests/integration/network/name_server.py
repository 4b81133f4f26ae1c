"""A server that says a name: over TCP on port 80, over UDP on 5353, both families."""

from __future__ import annotations

import os
import selectors
import socket
import sys


def main() -> None:
    name, told = sys.argv[1].encode() + b"\n", int(sys.argv[2])
    tcp = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", 5353))
    os.write(told, b".")
    os.close(told)
    chooser = selectors.DefaultSelector()
    chooser.register(tcp, selectors.EVENT_READ)
    chooser.register(udp, selectors.EVENT_READ)
    while True:
        for key, _ in chooser.select():
            if key.fileobj is tcp:
                connection, _peer = tcp.accept()
                chooser.register(connection, selectors.EVENT_READ)
                connection.sendall(name)
            elif key.fileobj is udp:
                _data, sender = udp.recvfrom(2000)
                udp.sendto(name, sender)
            else:
                answer(chooser, key.fileobj)


def answer(chooser: selectors.BaseSelector, connection: object) -> None:
    assert isinstance(connection, socket.socket)
    try:
        data = connection.recv(65536)
        if data:
            connection.sendall(data)
            return
    except OSError:
        pass
    chooser.unregister(connection)
    connection.close()


if __name__ == "__main__":
    main()
