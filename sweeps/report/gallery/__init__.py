"""sweeps/report/gallery"""
