"""The data plane over gRPC: passes `backend.Backend` calls to the instance that holds the model.

May import loader and everything below it.
"""
