"""probing/scoring"""
