"""What backends write: a bounded log for each model.

May import no other package of the loader.
"""
