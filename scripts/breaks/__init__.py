"""The invariants of architecture.md, broken: what a careless change might do, and the test that must see it."""

from .calls import BREAKS as CALLS
from .change import Break
from .endpoints import BREAKS as ENDPOINTS
from .ends import BREAKS as ENDS

__all__ = ["BREAKS", "Break"]

BREAKS = (*CALLS, *ENDPOINTS, *ENDS)
