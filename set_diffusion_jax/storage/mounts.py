"""Buckets that are mounted as folders, by gcsfuse and its like.

What is written there are objects: a file is renamed alone, but a folder only one object
after the other, if at all, and nothing has two names.
"""

import os
import pathlib
import re

# Types of file systems of the system's table. What a driver of Kubernetes mounts for a
# container, as GKE's for gcsfuse, says no more than "fuse".
BUCKETS = {
  "fuse",
  "fuse.blobfuse",
  "fuse.blobfuse2",
  "fuse.gcsfuse",
  "fuse.geesefs",
  "fuse.goofys",
  "fuse.mountpoint-s3",
  "fuse.ossfs",
  "fuse.rclone",
  "fuse.s3fs",
}


def table() -> str:
  """The system's table of what is mounted, see proc_pid_mountinfo(5); "" if none."""
  try:
    return pathlib.Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
  except OSError:  # no Linux
    return ""


def in_bucket(place: str | os.PathLike) -> bool:
  """Whether a path, there or not, is in a bucket that is mounted."""
  place, longest, kind = os.path.realpath(place), "", ""
  for line in table().splitlines():
    mount, _, about = line.partition(" - ")
    # Blanks, tabs, line ends and backslashes are written as octal numbers.
    point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), mount.split(" ")[4])
    inside = place == point or place.startswith(point.rstrip("/") + "/")
    if inside and len(point) >= len(longest):  # the last one of a place covers others
      longest, kind = point, about.split(" ")[0]
  return kind in BUCKETS
