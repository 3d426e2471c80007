"""sweeps/curation"""
