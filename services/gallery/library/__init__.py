"""What is installed: the models folder, its configurations and its files.

May import index and everything below it.
"""
