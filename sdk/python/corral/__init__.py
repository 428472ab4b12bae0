"""Corral's contracts as typed Python stubs, and `corral.client`; imports nothing of `services`."""
