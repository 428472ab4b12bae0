"""What `corral status` shows: services, capacity and models, once or as a live view.

May import models, tracking, client, display and failures.
"""
