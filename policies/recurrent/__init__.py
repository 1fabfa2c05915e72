"""Recurrent cores, which remember in a hidden state instead of slots."""
