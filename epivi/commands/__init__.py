"""One module per command: arguments, files, progress; the work itself is done by the packages beside this one."""
