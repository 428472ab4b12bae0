"""Long-running operations of any kind: journalled, queued, resumed, cancelled.

May import threads and errors; knows nothing of models.
"""
