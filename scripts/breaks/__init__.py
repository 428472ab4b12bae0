"""Changes that break the invariants of docs/architecture.md, each with the test that must notice it."""

from .calls import BREAKS as CALLS
from .change import Break
from .endpoints import BREAKS as ENDPOINTS
from .ends import BREAKS as ENDS

__all__ = ["BREAKS", "Break"]

BREAKS = (*CALLS, *ENDPOINTS, *ENDS)
