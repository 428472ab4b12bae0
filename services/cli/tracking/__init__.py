"""Following models and operations as they change, also across restarts of their service.

May import client, display and failures.
"""
