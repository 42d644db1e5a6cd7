"""The ways in: where sealed bundles come from.

Every source has the shape of :class:`agent.core.source.Source` and one verb, ``fetch``; ``watch`` repeats ``fetch``.
Sources move bytes and never open them: whoever controls a channel can withhold a bundle, delay it or repeat it, and
nothing else, because the seal holds against everyone between the sender and the worker. A source itself refuses only
bytes that are plainly no bundle: too many, a web page, a truncated answer.

How a bundle is written into each channel is told in ``agent/sources/README.md``.
"""
