"""The operator's view: the status document and the metrics, both from the same facts.

They answer "which identity does this worker use, and until when?". No secret is in either; an access key id is shown by
its last four characters only.
"""

from agent.report.metrics import metrics
from agent.report.status import status
from agent.report.vitals import ClockVitals, ServerVitals, Vitals

__all__ = ["ClockVitals", "ServerVitals", "Vitals", "metrics", "status"]
