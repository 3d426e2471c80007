"""storage/backends"""
