"""``python -m agent.server DESCRIPTOR PARENT``: for the daemon alone."""

import sys

from agent.server.master import main

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
