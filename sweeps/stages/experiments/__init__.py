"""sweeps/stages/experiments"""
