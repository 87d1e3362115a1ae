"""The FUSE adapter: pyfuse3's requests become calls of `Session`'s parts, and back.

Knows: that pyfuse3 wants one object with a method for each request, and which modules have them:
`name_requests`, `file_requests`, `directory_requests`, `attribute_requests`. Must not know: what
any request does, how anything is stored, sent or merged. There is no policy in any of them.
"""

from __future__ import annotations

from mount.fuse.attribute_requests import AttributeRequests
from mount.fuse.directory_requests import DirectoryRequests
from mount.fuse.file_requests import FileRequests


class FileSystem(FileRequests, DirectoryRequests, AttributeRequests):
    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = False
