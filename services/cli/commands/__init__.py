"""The commands as typed: one module for each, with its options and help. Light to import.

May import invoke and display at the top, and actions and stack inside functions.
"""
