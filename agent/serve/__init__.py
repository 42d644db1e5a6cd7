"""The answering side: it looks up what is served and sends it in a dialect. It never fetches, issues, opens or decides.

A GET of a credential is a lookup and one write of bytes that were rendered when the credential changed: no network, no
lock, no waiting. A request that must wait (a first credential that is on its way, a long poll, a pass-through) becomes
a coroutine; every other is answered in the call that read it.

``endpoint`` composes: bytes (``listener``), who may speak (``gate``), the dialects (``ec2``, ``container``, ``gce``),
the pass-through (``proxy``), and the operator's socket (``control``).
"""
