"""What is wrong with this worker, and what to type next?

* :mod:`~agent.doctor.probes`: finds out, each probe in a process of its own (:mod:`~agent.doctor.isolation`);
* :mod:`~agent.doctor.facts`: what was found, as values;
* :mod:`~agent.doctor.checks`: what is said of it, one pure function a check;
* :mod:`~agent.doctor.finding`, :mod:`~agent.doctor.telling`: a finding, their order, and how they are told.
"""

from agent.doctor.checks import diagnose
from agent.doctor.facts import Control
from agent.doctor.finding import Finding, Level, failed
from agent.doctor.isolation import Identity
from agent.doctor.probes import Machine, examine
from agent.doctor.telling import document, lines

__all__ = ["Control", "Finding", "Identity", "Level", "Machine", "diagnose", "document", "examine", "failed", "lines"]
