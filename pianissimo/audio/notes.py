"""What is worth telling about how a recording was read; part of `Transcript.reasons`."""

from typing import Literal, get_args

Note = Literal[
    "opposite_phase",
    "one_channel",
    "several_tracks",
    "joined_files",
    "unread_rest",
    "gaps",
    "same_channels",
    "crosstalk",
]
NOTES: tuple[Note, ...] = get_args(Note)

NOTE_TEXTS: dict[str, str] = {
    "opposite_phase": "the channels are in opposite phase; one was inverted (check the cable)",
    "one_channel": "a channel with steady, loud noise was left out",
    "several_tracks": "the file has several sound tracks; the main one was read",
    "joined_files": "the file consists of several recordings; all were read, one after the other",
    "unread_rest": "the end of the file cannot be decoded and was left out",
    "gaps": "the sound starts late or has gaps; silence was inserted, so that times are right",
    "same_channels": "all channels hold the same sound, so they are one speaker",
    "crosstalk": "words that leaked from one channel into another were left out",
}
"""One line for people about each note."""
