"""A cluster of several nodes on this machine, on 127.0.0.1 alone, for as long as its stdin is open.

    python tests/cluster/several_nodes.py 3      a head without CPUs and three nodes of two CPUs

Prints the address. A line "kill" on stdin ends a node as a lost machine would, all its processes at once.
"""

import sys

from ray._private import ray_constants
from ray.cluster_utils import Cluster

ray_constants.ENABLE_RAY_CLUSTER = False  # or nodes would listen on the machine's outer address


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(int(sys.argv[1]))]
    print(cluster.address, flush=True)  # noqa: T201  # the test reads it
    for _ in sys.stdin:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("killed", flush=True)  # noqa: T201
    cluster.shutdown()


if __name__ == "__main__":
    main()
