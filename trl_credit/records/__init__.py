"""Completions with their token credit: the record, its files, its page, its picture and its terminal view."""
