"""probing/probes"""
