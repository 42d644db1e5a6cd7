"""In the place of a package that is here and not on workers: structlog would load it, at each start of an agent.

Where moto is, rich is. This folder comes first where a test's agent looks for modules (``tests.system.harness.MODULES``).
"""

raise ImportError("rich is no part of what is installed on a worker")
