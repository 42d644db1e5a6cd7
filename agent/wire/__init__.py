"""The dialects: what goes over the wire, both ways, as pure functions.

We *serve* EC2, container and GCE metadata, we *read* the same from the real services (the machine's own identity,
sources), and we *pass it through*; so the paths and header names (:mod:`~agent.wire.names`) and the document shapes are
written once, here. No sockets, no clock, no state. Beside the function that makes an answer stands what clients do with
it, and hence why it is as it is.

A ``parse_*`` function has one way to fail: :class:`agent.core.errors.WireError`.
"""
