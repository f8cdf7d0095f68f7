"""Connects training workers through a store that listens only on the address of rank 0's node.

Ray Train lets torch open this store, and torch opens it on all addresses of the machine; it ignores MASTER_ADDR. Here
rank 0 opens the socket itself: on 127.0.0.1 in a local Ray, on the node's address in a cluster.
"""

import os
import socket
from datetime import timedelta
from typing import Any

import ray
from ray.train.torch.config import TorchConfig, _set_torch_distributed_env_vars, _TorchBackend
from torch import distributed

_WAITING_CONNECTIONS = 1024  # for workers that start at the same time

_served: list[distributed.TCPStore] = []  # used in the process of rank 0, between the two calls that start a group


class OneAddressConfig(TorchConfig):
    """Ray Train's configuration for torch, with the process group below."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _OneAddressBackend


class _OneAddressBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Joins all workers in one process group; runs in Ray Train's controller."""
        has_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        address, port = worker_group.execute_single(0, _serve_store)
        worker_group.execute(_set_torch_distributed_env_vars)
        group = {
            "backend": "nccl" if has_gpus else "gloo",
            "world_size": len(worker_group),
            "timeout": timedelta(seconds=backend_config.timeout_s),
        }
        ray.get(
            [
                worker_group.execute_single_async(rank, _join_group, address, port, world_rank=rank, **group)
                for rank in range(len(worker_group))
            ]
        )


def _serve_store() -> tuple[str, int]:
    """Opens the store in rank 0's process; returns its address and port."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=_WAITING_CONNECTIONS) as server:
        port = server.getsockname()[1]
        descriptor = server.detach()  # from here on it belongs to the store
    store = distributed.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor)
    _served[:] = [store]
    return address, port


def _join_group(address: str, port: int, world_rank: int, world_size: int, backend: str, timeout: timedelta) -> None:
    """Joins this process to the group; returns when all processes have joined."""
    if backend == "nccl":
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # fail if a peer is lost, as in Ray Train
    store = _served.pop() if world_rank == 0 else distributed.TCPStore(address, port, is_master=False, timeout=timeout)
    store.set_timeout(timeout)
    distributed.init_process_group(backend, store=store, rank=world_rank, world_size=world_size, timeout=timeout)
