"""Sort random keys of 16 hex digits, as htsort's index does or by numpy alone, and print the CPU seconds of it."""

import argparse
import time

import numpy as np

from tarmill.formats.span_order import order_of

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("count", type=int)
parser.add_argument("--by", choices=["order_of", "argsort"], required=True)
options = parser.parse_args()

digits = np.frombuffer(b"0123456789abcdef", np.uint8)
draw = np.random.default_rng(7).integers(0, 16, (options.count, 16), np.uint8)
keys = digits[draw].view("S16").reshape(options.count)
del draw
start = time.process_time()
order = order_of(keys) if options.by == "order_of" else np.argsort(keys, kind="stable")
spent = time.process_time() - start
ordered = keys[order]
print(spent, int(len(ordered) == options.count and bool((ordered[1:] >= ordered[:-1]).all())))
