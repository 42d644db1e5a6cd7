"""The worker credential agent.

A small daemon, baked into the images of cloud workers, that receives a sealed credential bundle, opens it, and serves
what is inside through the interfaces that cloud SDKs already look at. It is not a credential store for people, not a
proxy for data, and not a replacement for IAM: it carries a short-lived identity the last few millimetres.

The public face for control planes is :mod:`agent.bundle`; everything else is private to the daemon.
"""

__version__ = "0.1.0"
