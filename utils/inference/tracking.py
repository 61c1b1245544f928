"""Which box is the same object as in the frame before: ByteTrack (Zhang et al., ECCV 2022), by the package trackers."""

import numpy as np
import torch

from utils.cli import require
from utils.inference.sources import Frame

SURE = 0.5  # boxes of at least this confidence are matched to tracks first, the others to what is left
PICTURES = -1  # all pictures of a run are one sequence


class Tracking:
    """Numbers the objects of each video and stream from 1; pictures, in their order, are taken for one video.

    An object has its number from the second frame on that it is seen in.

    conf_thres: 0-1. What is more confident may begin a track.
    Raises ValueError where the package is not installed.
    """

    def __init__(self, conf_thres: float):
        require("trackers", "--track")
        self.conf_thres = conf_thres
        self._trackers: dict[int, object] = {}
        self._numbers: dict[int, dict[int, int]] = {}  # the package's, which may go on from one video to the next

    def __call__(self, frame: Frame, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (n, 6) of the next frame of its source, in pixels -> (n, 7): the number of the track, 0 for none."""
        from supervision import Detections

        source = PICTURES if frame.number is None else frame.source
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
                if track >= 0:  # otherwise it has none yet
                    tracks[row] = numbers.setdefault(track, len(numbers) + 1)
        return torch.cat((boxes, tracks), 1)

    def _begin(self, fps: float):
        from trackers import ByteTrackTracker

        return ByteTrackTracker(
            frame_rate=fps,
            track_activation_threshold=self.conf_thres,
            high_conf_det_threshold=SURE,
            minimum_consecutive_frames=1,
        )
