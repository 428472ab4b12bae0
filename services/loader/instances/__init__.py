"""One backend process that holds one model: started, made ready, and its state while it runs.

May import backends, memory, live_settings and everything below them.
"""
