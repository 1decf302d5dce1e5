"""`python -m ledger.kit.health HOST:PORT`: exit 0 when the service there says it is serving. For container checks."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger.kit.client import connect

DEADLINE = 3.0  # seconds


def serving(address: str) -> bool:
    """Whether the standard health service at `address` answers SERVING."""
    with connect(address) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        except grpc.RpcError:
            return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if len(sys.argv) == 2 and serving(sys.argv[1]) else 1)
