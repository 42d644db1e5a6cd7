"""The machine itself: its clocks, files, firmware, service manager and packet filter. One job a file."""
