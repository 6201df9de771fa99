# Read by every bash of a workflow under test: `epivi` is forked from a process that has imported it (command_server.py).
epivi() {
    "$EPIVI_PYTHON" -I -S "$EPIVI_CLIENT" "$EPIVI_SOCKET" "$@"
}
