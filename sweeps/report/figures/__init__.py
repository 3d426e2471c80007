"""sweeps/report/figures"""
