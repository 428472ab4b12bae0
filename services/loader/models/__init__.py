"""Which models are configured: YAML files, loose model files, and the contents of their headers.

May import no other package of the loader.
"""
