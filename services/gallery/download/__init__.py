"""Downloads files: resumed, verified, unpacked, staged inside the models folder.

May import library and everything below it.
"""
