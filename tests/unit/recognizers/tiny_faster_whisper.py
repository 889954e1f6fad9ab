"""A tiny Whisper in the format of CTranslate2, as its own converter writes it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import ctranslate2
from tiny_whisper import save_tiny_whisper


def save_tiny_faster_whisper(folder: Path, *, multilingual: bool = True) -> None:
    """Write the folder, with the two files beside it that the converter is asked to copy."""
    # The empty piece is how CTranslate2 tells a multilingual model.
    options = {"multilingual": multilingual, "empty_piece": multilingual}
    with TemporaryDirectory() as source:
        save_tiny_whisper(Path(source), max_target_positions=448, **options)
        converter = ctranslate2.converters.TransformersConverter(
            source, copy_files=["tokenizer.json", "preprocessor_config.json"]
        )
        converter.convert(str(folder))
