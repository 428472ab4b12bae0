"""Which models are configured: YAML files, loose model files, and what their headers say.

May import no other package of the loader.
"""
