"""The change feed: who sees what, cursors and pages, trimming, telling those who listen."""
