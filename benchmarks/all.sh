#!/bin/sh
# Every figure that README and benchmarks/results show: `make bench`. The machine should have nothing else to do.
set -eu
cd "$(dirname "$0")/.."
results=benchmarks/results
blocks=all_gather,reduce_scatter,all_to_all,gather,scatter
peers="--peers gloo,openmpi,mpich"
small="--iters 500 -w 50 --budget 5s"  # the first calls of a turn find cold caches: 64 cards take twice the time
more="--iters 100 -w 10 --budget 3s --turns 3"

superpod-bench all_reduce -n 2,8,64 -b 8 -e 4K -f 512 $small $peers -J $results/all-reduce-small.json
superpod-bench all_reduce -n 2,8,64 -b 64K -e 16M -f 16 $peers $more -J $results/all-reduce-medium.json
superpod-bench all_reduce -n 2,8 -b 64M -e 64M $peers $more -J $results/all-reduce-large.json
zmq="--link zmq --peers gloo"
superpod-bench all_reduce -n 2,8,64 -b 8 -e 4K -f 512 $small --turns 3 $zmq -J $results/all-reduce-zmq-small.json
superpod-bench all_reduce -n 2,8,64 -b 64K -e 1M -f 16 $zmq $more -J $results/all-reduce-zmq-medium.json
# 4 KiB and 1 MiB: of the array that every rank has, or, where blocks are exchanged, of one rank's block
superpod-bench broadcast,reduce,barrier -n 8,64 -b 4K -e 1M -f 256 $peers $more -J $results/rooted.json
superpod-bench $blocks -n 8 -b 32K -e 8M -f 256 $peers $more -J $results/blocks-8.json
superpod-bench $blocks -n 64 -b 256K -e 64M -f 256 $peers $more -J $results/blocks-64.json
superpod-bench latency -b 8 -e 4M -f 8 $peers -J $results/latency.json
superpod-bench bandwidth -b 8 -e 4M -f 8 $peers -J $results/bandwidth.json
superpod-bench launch -n 8,64,256 $peers -J $results/launch.json
superpod-bench launch -n 64 $peers --peers-up-to 64 --turns 1 -J $results/launch-64.json
superpod-bench ddp -n 2,8,64 -J $results/ddp.json
# Between hosts, which are network namespaces of this machine: as root
if [ "$(id -u)" -eq 0 ]; then
  between="--sizes 8,4K,64K,1M,16M,64M --peers gloo,openmpi --encryption on,off --algorithm auto,tree --turns 3"
  superpod-bench namespaces 2 -- superpod-bench all_reduce --hosts a:4,b:4 $between -J $results/hosts-2x4.json
  superpod-bench namespaces 4 -- superpod-bench all_reduce --hosts a:8,b:8,c:8,d:8 $between -J $results/hosts-4x8.json
else
  echo "superpod: not root, so no hosts can be made here: hosts-2x4.json and hosts-4x8.json stay as they are" >&2
fi

all_reduce="$results/all-reduce-small.json $results/all-reduce-medium.json $results/all-reduce-large.json"
superpod-bench plot $all_reduce -o docs/all-reduce-time.svg
superpod-bench plot $all_reduce --kind busbw -o docs/all-reduce-busbw.svg
superpod-bench plot $all_reduce --kind memory -o docs/all-reduce-memory.svg
superpod-bench plot $all_reduce $results/rooted.json $results/blocks-*.json --kind ratio -o docs/ratios.svg
