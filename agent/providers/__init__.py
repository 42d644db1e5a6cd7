"""Issue credentials: a grant in, a frozen credential out, or one of two refusals.

``issue(grant, base, now)`` is the verb. When to call it, how often to try again and what to serve meanwhile are the
controller's and the store's business; nothing here retries, sleeps, caches a credential or reads a clock.

The content of a bundle is remote input: every URL is compared with an allow-list, every address with the client's
guard, files are confined to configured directories, and nothing is ever executed.
"""

from agent.providers.mint import Mint
from agent.providers.settings import GoogleEndpoints, MintSettings

__all__ = ["GoogleEndpoints", "Mint", "MintSettings"]
