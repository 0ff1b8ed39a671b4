"""Random programs by the thousand: python tests/chaos/soak.py --first 1000 --count 500 [--link shm] [--faults]

Prints each program that goes wrong, with the command that runs it alone.
"""

from __future__ import annotations

import argparse
import sys
import time

from chaos_pool import Pool
from chaos_programs import program
from chaos_verdict import verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="seed of the first program")
    parser.add_argument("--count", type=int, default=1, help="how many")
    parser.add_argument("--link", choices=("zmq", "shm"), help="default: both take turns")
    parser.add_argument("--faults", action="store_true", help="each with a rank killed or a call altered")
    parser.add_argument("--print", action="store_true", help="print programs and ends")
    args = parser.parse_args()
    wrong, start = 0, time.monotonic()
    with Pool() as pool:
        for seed in range(args.first, args.first + args.count):
            link = args.link or ("zmq", "shm")[seed % 2]
            made = program(seed, link, faulty=args.faults)
            begun = time.monotonic()
            ends = pool.run(made)
            problem = verdict(made, ends)
            if args.print:
                print(made, *ends, sep="\n  ", flush=True)
            if args.print:
                print(f"  {time.monotonic() - begun:.2f} s")
            if problem:
                wrong += 1
                faults = " --faults" if args.faults else ""
                print(f"{problem}\n  {time.monotonic() - begun:.1f} s; again: ", end="")
                print(f"python tests/chaos/soak.py --first {seed} --link {link}{faults} --print", flush=True)
    print(f"{args.count} programs, {wrong} of them wrong, {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
