"""Stands in for `loraloom train CONFIG.yaml --out DIR [--resume]`: writes the files of a run, a step every 20 ms.

It does not listen to requests to end with the seed 666, and fails with the seed 13.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

settings = Path(sys.argv[2]).read_text("utf-8")
out = Path(sys.argv[sys.argv.index("--out") + 1])
if "seed: 13" in settings:
    sys.exit("loraloom: data/train.csv: it has no rows")
for request in (signal.SIGINT, signal.SIGTERM):
    signal.signal(request, signal.SIG_IGN if "seed: 666" in settings else signal.default_int_handler)
out.mkdir(parents=True, exist_ok=True)
(out / "run-state.json").write_text(json.dumps({"settings": {}}))
print("resumed after step 1" if "--resume" in sys.argv else "lora on bert: 48 examples, 500 steps of 8", flush=True)
try:
    with (out / "log.jsonl").open("a") as log:
        for step in range(1, 501):
            log.write(json.dumps({"kind": "step", "step": step, "loss": 1.0 / step}) + "\n")
            log.flush()
            time.sleep(0.02)
except KeyboardInterrupt:
    sys.exit("loraloom: interrupted; the same command with --resume goes on from the last checkpoint")
