"""Completions with their token credit: the record, its files, and its page, picture and terminal views."""
