"""`python -m bench.peers.sftp_listener PORT PROGRAM`: an SFTP server for each connection to PORT,
as inetd would start it. sshd would encrypt, and want keys and users."""

from __future__ import annotations

import socket
import subprocess
import sys


def main() -> None:
    running: list[subprocess.Popen[bytes]] = []
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                there = connection.fileno()
                running.append(subprocess.Popen([sys.argv[2]], stdin=there, stdout=there))
            running = [process for process in running if process.poll() is None]


if __name__ == "__main__":
    main()
