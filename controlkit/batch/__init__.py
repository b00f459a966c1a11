"""Detectors on many pictures: folders, globs and videos.

`preprocess_files` makes the maps of files, folders and globs, in several processes, and goes on where it
was stopped; `preprocess_video` those of a video. `sources` finds the pictures and names their maps, `making`
makes the maps of one picture, `pool` and `worker` run that in processes, `manifest` keeps the record,
`cache` the results for other runs.
"""

from controlkit.batch.cache import MapCache
from controlkit.batch.files import Failure, FilesReport, preprocess_files
from controlkit.batch.video import preprocess_video

__all__ = ["Failure", "FilesReport", "MapCache", "preprocess_files", "preprocess_video"]
