"""A peer for bench/offline.py: NeMo or Transformers with random weights.

    python offline_peer.py nemo|transformers|nemo-ctc SAMPLES.npy THREADS

The first two have the 0.6B architecture, the last is `stt_en_conformer_ctc_large`. Runs in the
peers' environment. Says "ready" when loaded and warmed up; then, for every line on standard input,
transcribes the samples once and prints the seconds it took: features, encoder at the longest
lookahead and greedy search, without reading files or making text.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

BLANK_BIAS = 3.0


def nemo(samples: np.ndarray) -> Callable[[], None]:
    from nemo.collections.asr.modules import (
        AudioToMelSpectrogramPreprocessor,
        ConformerEncoder,
        RNNTDecoder,
        RNNTJoint,
    )
    from nemo.collections.asr.parts.submodules.rnnt_greedy_decoding import GreedyBatchedRNNTInfer

    features = AudioToMelSpectrogramPreprocessor(
        normalize="NA", features=128, n_fft=512, dither=0.0, pad_to=0
    ).eval()
    encoder = ConformerEncoder(
        feat_in=128,
        n_layers=24,
        d_model=1024,
        n_heads=8,
        use_bias=False,
        subsampling="dw_striding",
        subsampling_factor=8,
        subsampling_conv_channels=256,
        causal_downsampling=True,
        att_context_size=[[70, 13], [70, 6], [70, 1], [70, 0]],
        att_context_style="chunked_limited",
        xscaling=False,
        conv_kernel_size=9,
        conv_norm_type="layer_norm",
        conv_context_size="causal",
    ).eval()
    decoder = RNNTDecoder(
        prednet={"pred_hidden": 640, "pred_rnn_layers": 2, "dropout": 0.0}, vocab_size=1024
    ).eval()
    net = {
        "joint_hidden": 640,
        "activation": "relu",
        "dropout": 0.0,
        "encoder_hidden": 1024,
        "pred_hidden": 640,
    }
    joint = RNNTJoint(jointnet=net, num_classes=1024).eval()
    joint.joint_net[-1].bias.data[-1] = BLANK_BIAS
    greedy = GreedyBatchedRNNTInfer(decoder, joint, blank_index=1024, max_symbols_per_step=10)
    signal, length = torch.from_numpy(samples)[None], torch.tensor([len(samples)])

    def run() -> None:
        mel, frames = features(input_signal=signal, length=length)
        encoded, counts = encoder(audio_signal=mel, length=frames)
        greedy(encoder_output=encoded, encoded_lengths=counts)

    return run


def nemo_ctc(samples: np.ndarray) -> Callable[[], None]:
    from nemo.collections.asr.modules import (
        AudioToMelSpectrogramPreprocessor,
        ConformerEncoder,
        ConvASRDecoder,
    )

    features = AudioToMelSpectrogramPreprocessor(
        normalize="per_feature", features=80, n_fft=512, dither=0.0, pad_to=0
    ).eval()
    encoder = ConformerEncoder(
        feat_in=80,
        n_layers=18,
        d_model=512,
        n_heads=8,
        subsampling="striding",
        subsampling_factor=4,
        subsampling_conv_channels=512,
        conv_kernel_size=31,
    ).eval()
    head = ConvASRDecoder(feat_in=512, num_classes=128, vocabulary=[str(i) for i in range(128)])
    head.eval()
    signal, length = torch.from_numpy(samples)[None], torch.tensor([len(samples)])

    def run() -> None:
        mel, frames = features(input_signal=signal, length=length)
        encoded, _ = encoder(audio_signal=mel, length=frames)
        best = head(encoder_output=encoded).argmax(-1)[0]
        torch.unique_consecutive(best)

    return run


def transformers(samples: np.ndarray) -> Callable[[], None]:
    from transformers import (
        NemotronAsrStreamingConfig,
        NemotronAsrStreamingEncoderConfig,
        NemotronAsrStreamingFeatureExtractor,
        NemotronAsrStreamingForRNNT,
    )

    encoder = NemotronAsrStreamingEncoderConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=8,
        intermediate_size=4096,
        num_mel_bins=128,
        attention_bias=False,
        convolution_bias=False,
        scale_input=False,
        sliding_window=71,
        default_num_lookahead_tokens=13,
    )
    config = NemotronAsrStreamingConfig(
        vocab_size=1025, encoder_config=encoder, blank_token_id=1024, pad_token_id=0
    )
    model = NemotronAsrStreamingForRNNT(config).eval()
    model.generation_config.decoder_start_token_id = 1024
    model.joint.head.bias.data[-1] = BLANK_BIAS
    extractor = NemotronAsrStreamingFeatureExtractor(feature_size=128)

    def run() -> None:
        inputs = extractor(samples, sampling_rate=16000, return_tensors="pt")
        model.generate(**inputs)

    return run


def main() -> None:
    peer, path, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    samples = np.load(path)
    with torch.inference_mode():
        sides = {"nemo": nemo, "transformers": transformers, "nemo-ctc": nemo_ctc}
        run = sides[peer](samples)
        run()
        print("ready", flush=True)
        for _ in sys.stdin:
            began = time.perf_counter()
            run()
            print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
