"""An adapter at another rank: `ranks` what each would keep, `resizing` the file, `drawing` the picture."""

from loraloom.compose.resize.resizing import ResizeJob, ResizeReport, resize

__all__ = ["ResizeJob", "ResizeReport", "resize"]
