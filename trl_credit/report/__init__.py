"""HTML reports. Each is one file that opens offline and makes no network requests."""
