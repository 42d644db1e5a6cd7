"""The state machine: whose identity each cloud has, and what keeps it alive.

Read it in this order: :mod:`~agent.identity.slots` (one credential: its states and transitions),
:mod:`~agent.identity.state` (all there is), :mod:`~agent.identity.standing` (how a cloud stands, and what is answered),
:mod:`~agent.identity.admission` (whether a bundle is taken), :mod:`~agent.identity.transitions` (what each event does),
:mod:`~agent.identity.until` (until when), :mod:`~agent.identity.store` (the shell that holds it).

Everything is a frozen value or a pure function; instants and the random source are parameters.
"""
