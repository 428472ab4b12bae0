"""Backend processes: started, adopted, watched and ended, also after the loader itself has died.

May import no other package of the loader.
"""
