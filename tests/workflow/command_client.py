"""Asks `command_server` to run epivi in place of this process: `command_client.py SOCKET ARGUMENT...`."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect(sys.argv[1])
    request = {"line": ["epivi", *sys.argv[2:]], "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    answer = connection.recv(16)
sys.exit(int(answer) if answer else 1)
