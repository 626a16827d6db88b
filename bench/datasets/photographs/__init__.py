"""Photographs of many sizes: decoding, listing folders, shards on disk, and the views that networks are
trained on.
"""
