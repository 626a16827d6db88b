"""Photographs of many sizes: decoding, listing folders, shards on disk, and the views for networks."""
