"""Tells what loaded models do and use, and shuts them down."""
