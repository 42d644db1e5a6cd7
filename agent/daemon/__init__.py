"""The composition root: the only package that knows every other.

Each file answers one question:

* :mod:`~agent.daemon.service`: in which order does it start and stop, and what is wired to what?
* :mod:`~agent.daemon.configured`: which configuration does a start use?
* :mod:`~agent.daemon.prepare`: is everything there that the configuration names?
* :mod:`~agent.daemon.compose`: what does a piece of configuration come to?
* :mod:`~agent.daemon.beliefs`: whom do we trust, and with which keys do we open what they send?
* :mod:`~agent.daemon.late`: what did the machine not have yet at the start, or has lost since?
* :mod:`~agent.daemon.socket_name`: is a unix socket still found by its name?
* :mod:`~agent.daemon.listeners`: what do the endpoints get?
* :mod:`~agent.daemon.snapshots`, :mod:`~agent.daemon.servers`, :mod:`~agent.daemon.passing`: what is told to those who
  answer workers, and what may they ask for?
* :mod:`~agent.daemon.workers`, :mod:`~agent.daemon.begins`, :mod:`~agent.daemon.child`, :mod:`~agent.daemon.unit`,
  :mod:`~agent.daemon.master_connection`: where are workers answered?
* :mod:`~agent.daemon.restore`: how does what was accepted here before come back into force?
* :mod:`~agent.daemon.who`: who is this machine?
* :mod:`~agent.daemon.remembered`, :mod:`~agent.daemon.disk`: what was accepted here before?
* :mod:`~agent.daemon.succession`, :mod:`~agent.daemon.leaving`, :mod:`~agent.daemon.handover`,
  :mod:`~agent.daemon.kept`, :mod:`~agent.daemon.codec`:
  what did the process before us leave, what does the next one get, and how is it written?
* :mod:`~agent.daemon.grace`: since when is a first bundle waited for, and what else outlives a stop?
* :mod:`~agent.daemon.age`: has the disk gone back in time?
* :mod:`~agent.daemon.listening`: where do we listen?
* :mod:`~agent.daemon.ready`, :mod:`~agent.daemon.pulse`: is it ready, and is it alive?
* :mod:`~agent.daemon.reload`, :mod:`~agent.daemon.once`, :mod:`~agent.daemon.files`: what was loaded, and what anew?
* :mod:`~agent.daemon.tokens`: which tokens do workers present?
* :mod:`~agent.daemon.publish`: what do the environment files say?
* :mod:`~agent.daemon.announce`: where do senders find our key?
* :mod:`~agent.daemon.looking`: what do the sources hold just now?
* :mod:`~agent.daemon.requests`: who was answered, and who was refused?
* :mod:`~agent.daemon.control`: what do the paths of the control socket do?
"""

from agent.daemon.child import ServerChild
from agent.daemon.configured import Configured
from agent.daemon.prepare import Checked, check
from agent.daemon.reload import LOADED_ONCE, needs_restart
from agent.daemon.service import Daemon
from agent.daemon.unit import ServerUnit

__all__ = ["LOADED_ONCE", "Checked", "Configured", "Daemon", "ServerChild", "ServerUnit", "check", "needs_restart"]
