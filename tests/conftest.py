"""Every test computes with one thread, so that parallel workers do not fight over the cores."""

import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "parity")]
torch.set_num_threads(1)
