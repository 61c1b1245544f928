"""Tracking of objects from frame to frame: ByteTrack (Zhang et al., ECCV 2022), from the package trackers."""

import numpy as np
import torch

from utils.cli import require
from utils.inference.sources import Frame

HIGH_CONFIDENCE = 0.5  # boxes from this confidence on are matched with tracks first, then the others
ALL_IMAGES = -1  # key of the one sequence that all images of a run form


class Tracking:
    """Numbers the objects of each video and stream from 1. All images of a run count as the frames of one video.

    An object gets its number in the second frame in which it is detected.

    conf_thres: minimum confidence, 0-1, of a box that begins a track.

    Raises ValueError where the package is not installed.
    """

    def __init__(self, conf_thres: float):
        require("trackers", "--track")
        self.conf_thres = conf_thres
        self._trackers: dict[int, object] = {}
        self._numbers: dict[int, dict[int, int]] = {}  # by the package's numbers, which may continue over videos

    def __call__(self, frame: Frame, boxes: torch.Tensor) -> torch.Tensor:
        """Returns the boxes (n, 6), in pixels, of a source's next frame with track numbers, 0 for none: (n, 7)."""
        from supervision import Detections

        source = ALL_IMAGES if frame.number is None else frame.source
        if source not in self._trackers:
            self._trackers[source], self._numbers[source] = self._begin(frame.fps), {}
        rows = boxes.double().numpy()
        given = Detections(
            xyxy=rows[:, :4], confidence=rows[:, 4], class_id=rows[:, 5].astype(int), data={"row": np.arange(len(rows))}
        )
        tracked = self._trackers[source].update(given)
        numbers, tracks = self._numbers[source], torch.zeros(len(boxes), 1)
        if len(tracked):
            for row, track in zip(tracked.data["row"].tolist(), tracked.tracker_id.tolist()):
                if track >= 0:  # otherwise it has no number yet
                    tracks[row] = numbers.setdefault(track, len(numbers) + 1)
        return torch.cat((boxes, tracks), 1)

    def _begin(self, fps: float):
        from trackers import ByteTrackTracker

        return ByteTrackTracker(
            frame_rate=fps,
            track_activation_threshold=self.conf_thres,
            high_conf_det_threshold=HIGH_CONFIDENCE,
            minimum_consecutive_frames=1,
        )
