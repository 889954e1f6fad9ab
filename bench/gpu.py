"""The streaming engine on a GPU: the parts of bench/streaming.py in bfloat16, without the peers.

    python bench/gpu.py [latency] [capacity] [final] [drift] [memory] [--quick]

The default model has 0.6B parameters. The search for the capacity starts at 64 streams. The clocks
of all streams share this process with the engine, as in a server, and their lateness counts. A
large `p99_late_ms` means that the clocks limit the result.
"""

import argparse
import tempfile

import torch
from measure import PARTS
from streaming import LARGE, QUICK, add_options, make_plan, parse, run

DEFAULTS = {
    "model": LARGE,
    "streams": [1, 16, 64, 256],
    "capacity_range": [64, 16384],
    "final_streams": [1, 64],
    "drift_minutes": [60.0, 60.0],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.set_defaults(**DEFAULTS)
    options = parse(parser, list(PARTS), QUICK | {"streams": [1, 64]})
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU here; on a CPU run bench/streaming.py")
    about = {
        "gpu": torch.cuda.get_device_name(options.device),
        "cuda": torch.version.cuda,
    }
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(options, folder, precision="bfloat16")
        run(plan, options.parts or list(PARTS), options, **about)


if __name__ == "__main__":
    main()
