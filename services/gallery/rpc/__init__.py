"""The gallery's gRPC services, and conversion between messages and domain types.

May import every package of the gallery.
"""
