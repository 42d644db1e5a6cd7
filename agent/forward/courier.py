"""How a cluster is reached: a courier of three methods, which anything that can run Python on workers can have.

A courier is trusted with nothing: it carries public keys, evidence and sealed bundles. To bring identities to a cluster
of another kind (Slurm, Spark, a relay), give :func:`agent.forward.to` an object with these methods:

.. code-block:: python

    class Slurm:                                                 # for example: the nodes of an allocation
        name, private, named = "slurm", False, False
        def workers(self):
            return subprocess.check_output(["scontrol", "show", "hostnames"], text=True).split()
        def one(self, job, node):
            command = ["srun", "--overlap", "--nodes=1", f"--nodelist={node}", "python3", "-"]
            try:
                return subprocess.run(command, input=job.script, text=True, capture_output=True, check=True,
                                      timeout=job.seconds + 5).stdout
            except subprocess.TimeoutExpired:
                return LateError("no answer in time")
            except Exception as error:
                return error
        def call(self, job, workers):
            with ThreadPoolExecutor(32) as pool:
                return dict(zip(workers, pool.map(partial(self.one, job), workers)))
        def watch(self, joined):
            return lambda: None                                  # a newcomer is found when workers() is asked again

Where functions run and not programs (Spark), ``eval`` of ``job.expression`` is the reply. A worker that is to have the
identity before its first task must wait for that itself: ``job.after`` says when it may go on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Final, Protocol, TypeVar

import msgspec

from agent.core.errors import CourierError, UsageError
from agent.core.strictjson import NotThatShapeError, decode
from agent.enrol import LARGEST_ENROLMENT

T = TypeVar("T")

PROMPT_SECONDS: Final = 4.0
"""How long a worker may take while others wait for it."""
PATIENT_SECONDS: Final = 20.0
"""How long one may take that nobody waits for."""

GROUP: Final = 16
"""Recipients of one bundle. It may have 256 (FORMAT.md), but each recipient gets the entries of all: what a scheduler
sends out grows with the group, and what a smaller group saves there it costs in seals and in bytes to the scheduler.
``tests/simulation/forwarding.py`` measures it."""
LARGEST_GROUP: Final = 256


def group_of(courier: Courier) -> int:
    """How many machines one bundle is for.

    Raises:
        UsageError: the courier says something else than a number from 1 to 256.
    """
    group = getattr(courier, "group", GROUP)
    if type(group) is not int or not 1 <= group <= LARGEST_GROUP:
        raise UsageError(f"group of a courier: expected a number from 1 to {LARGEST_GROUP}, got {group!r}")
    return group


PROGRAM: Final = resources.files("agent.forward").joinpath("onworker.py").read_text("utf-8")
"""The text that runs on workers. Text and no code object: the workers' Python may be another than ours."""

Step = tuple[str, str, bytes | None]
"""Method, path and body of a request to the courier socket."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One request to be carried to the agents of many workers: the same for all of them.

    Attributes:
        steps: requests to the courier socket, in their order.
        seconds: how long all of it may take on a worker.
        after: how the worker's machine stands then: ``served``, ``refused``, ``withdrawn``; empty: nothing yet.
        session: of the forwarding that asks.
    """

    steps: tuple[Step, ...]
    seconds: float = PATIENT_SECONDS
    after: str = ""
    session: str = ""

    @property
    def request(self) -> str:
        """The argument of the program's ``main``."""
        steps = [(m, path, None if body is None else base64.b64encode(body).decode()) for m, path, body in self.steps]
        return json.dumps({"steps": steps, "seconds": self.seconds, "after": self.after, "session": self.session})

    @property
    def expression(self) -> str:
        """An expression that carries the request; its value, wherever it is evaluated, is the reply."""
        return f"(lambda n: (exec({PROGRAM!r}, n), n['main']({self.request!r}))[1])({{'__name__': 'credential-agent'}})"

    @property
    def script(self) -> str:
        """A program for an interpreter that reads it from its standard input; the last line it prints is the reply."""
        # On a line of its own, whatever a login shell has said before.
        return f"{PROGRAM}\nprint('\\n' + main({self.request!r}))\n"


class Answer(msgspec.Struct, frozen=True):
    """The agent's answer to one step."""

    status: int
    text: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The result from one worker. All of it is said by a stranger.

    Attributes:
        host: what the worker is called.
        agent: which agent was reached: the same for all workers of a machine.
        problem: ``no-agent``, ``not-running``, ``not-allowed``, ``failed``; ``None``: every step has an answer.
    """

    host: str
    agent: str | None
    problem: str | None = None
    said: str = ""
    answers: tuple[Answer, ...] = ()


class _Wire(msgspec.Struct):
    host: str
    agent: str | None = None
    problem: str | None = None
    said: str = ""
    answers: list[tuple[int, str]] = []


class LateError(CourierError):
    """No answer came in time. There may be one later: the worker is asked again, apart from the others."""


LARGEST_REPLY: Final = 4 * LARGEST_ENROLMENT
CHATTER: Final = 65_536
"""So many bytes may a login shell say of its own before the reply."""


def read_reply(text: object) -> Reply:
    """The program's result.

    Raises:
        CourierError: it is something else.
    """
    if not isinstance(text, str) or len(text) > LARGEST_REPLY + CHATTER:
        raise CourierError("the worker's reply is not text, or too long")
    try:
        # The reply itself has one line. What a shell has said on the way comes before it.
        wire = decode(text.strip().rpartition("\n")[2].encode("utf-8", "replace"), _Wire)
    except NotThatShapeError:
        raise CourierError("the worker's reply is not what was asked for") from None
    host = "".join(c for c in wire.host[:255] if c.isprintable())
    answers = tuple(Answer(status, said) for status, said in wire.answers)
    return Reply(host=host, agent=wire.agent, problem=wire.problem, said=wire.said, answers=answers)


class Courier(Protocol):
    """Reaches the workers of a cluster.

    Attributes:
        name: of the kind of cluster, for people.
        private: nobody between here and the workers reads or alters the messages, and the workers are who they say (TLS
            with a cluster's own certificates, ssh).
        named: the user has named each of these machines, so that who they are needs no other proof.

    It may have one more, ``group``: how many machines one bundle is for, 1 to 256; by default 16 (:data:`GROUP`). Each
    of them is carried the entries of all. What reaches many at once (a shared directory, a topic) carries least with
    256.
    """

    name: str
    private: bool
    named: bool

    def workers(self) -> Sequence[str]:
        """The workers that are there now, by names of the courier's own."""

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        """Evaluate ``job.expression`` (or run ``job.script``) on each of ``workers``.

        Returns:
            For each worker the text that came back (of ``job.script`` all that it printed), or why there is none:
            :class:`LateError` for one that has not answered in time. Who has left may be missing. It may raise if
            nobody could be reached, and returns within some seconds of ``job.seconds``. It is called from several
            threads at once.
        """

    def watch(self, joined: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """Call ``joined``, from any thread, with workers that have come, until the returned function is called.

        A courier that hears of none does nothing: ``workers`` is asked every few seconds all the same.
        """


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in runs of so many."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
