"""The tree of a drive: operations and their commit, versions, reading, trash, retention."""
