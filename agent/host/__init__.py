"""The machine underfoot: its clocks, files, firmware, service manager and packet filter. One verb a file."""
