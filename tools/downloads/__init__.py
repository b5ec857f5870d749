"""What ``python tools/download.py`` does: archives with checksums, and clips of YouTube videos by their lists."""
