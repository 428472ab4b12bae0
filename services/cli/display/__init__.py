"""What people and programs see: text, tables, progress, JSON.

May import failures.
"""
