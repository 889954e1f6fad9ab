"""Fixtures that several test folders share."""

import io
import os
import signal
from pathlib import Path

import pytest

# Tiny models gain nothing from a second thread, and lose much where other programs keep it busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Who is started in the background of a shell ignores interrupts, and so do those it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SENTENCES = (
    "the stream of speech comes in while the words come out",
    "yes no and then some we hear a sound we write a text",
    "where is the end it is here at the end of the sentence",
    "she sells sea shells he tells tales to the sea and the trees",
)
VOCABULARY = 40


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of a few thousand random weights that streams, has both heads, and talks.

    Its words mean nothing, but it says some for any sound, and the same ones every time.
    """
    import sentencepiece
    import torch

    from pianissimo.audio.features import FeatureConfig
    from pianissimo.models.asr import AsrConfig, AsrModel
    from pianissimo.models.checkpoints.model_folder import save_model
    from pianissimo.models.fastconformer import EncoderConfig
    from pianissimo.models.transducer import TransducerConfig
    from pianissimo.text.tokenizer import Tokenizer

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        vocab_size=VOCABULARY,
        model_type="bpe",
        character_coverage=1.0,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    config = AsrConfig(
        name="tiny",
        language="en",
        vocab_size=VOCABULARY,
        features=FeatureConfig(n_mels=16),
        encoder=EncoderConfig(
            n_mels=16, dim=16, layers=2, heads=2, ff_dim=32, subsampling_channels=4
        ),
        transducer=TransducerConfig(VOCABULARY, predictor_dim=16, predictor_layers=1, joint_dim=16),
        ctc=True,
        max_symbols=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AsrModel(config).eval()
        with torch.no_grad():
            # Random layers give nearly the same frame for any sound; only what differs shall count.
            noise = torch.randn(32_000) * torch.linspace(0.0, 0.3, 32_000)
            encoded, _ = model.encoder(model.features.whole(noise)[None], torch.tensor([201]))
            mean, deviation = encoded[0].mean(dim=0), encoded[0].std(dim=0).mean()
            for layer in (model.joiner.encoder, model.ctc.out):
                layer.weight.normal_().div_(deviation)
                layer.bias.copy_(-layer.weight @ mean)
            model.joiner.out.weight.normal_()
            model.joiner.out.bias[VOCABULARY] += 6.0  # a pause now and then
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, model, Tokenizer.from_sentencepiece(written.getvalue()))
    return folder
