"""Every card brings an array, and every card gets the sum of them all: superpod-run -n 8 examples/all_reduce.py"""

import numpy as np

import superpod

comm = superpod.init()  # this process is now one card of the job; without superpod-run, the only one
array = np.arange(4) + 10 * comm.rank  # each card has numbers of its own
print(f"card {comm.rank} of {comm.world_size} brings {array}")
comm.all_reduce(array, op="sum")  # in place: array now holds the sum over all cards
print(f"card {comm.rank} of {comm.world_size} has    {array}")
comm.close()
