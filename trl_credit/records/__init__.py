"""Completions and images with their credit: the records, their files, and their pages, pictures and terminal views."""
