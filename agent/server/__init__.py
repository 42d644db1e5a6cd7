"""The program that answers workers, and nothing else: it holds what a snapshot says, and a link to the controller.

``python -m agent.server`` is started by its unit; or by the daemon, before that gives up to execute anything. It is
given everything by descriptors: the workers' sockets and a link for each server. Its processes:

* the *master* (:mod:`~agent.server.master`) has the listening sockets, hears nobody but the controller, and begins a
  server anew the moment one ends (:mod:`~agent.server.crew`); another stands by and takes over at once;
* the *server* (:mod:`~agent.server.work`) has given up all but to answer on what it has (:mod:`agent.host.confine`).

Neither imports a key, a bundle, an SDK, a TLS client or the log.
"""
