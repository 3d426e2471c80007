"""cluster/observers"""
