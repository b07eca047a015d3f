"""A TCP proxy on this machine that makes a server look far away: it adds delay, and takes no throughput.

``python -m benchmarks.delay_proxy --listen 127.0.0.1:9001 --target 127.0.0.1:8333 --delay-ms 20`` adds 20 ms to each
round trip, half of it in each direction. Every piece of data is kept back by its own arrival time, so what is sent
in one go arrives in one go, later. A new connection pays one round trip more, as TCP's handshake does.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from mlflow_artifact_gc.demo.servers import HOST, Program, S3Server, free_ports, running

_PIECE_BYTES: Final = 256 * 1024
_PIECES_UNDERWAY: Final = 256
"""What one direction of one connection may keep back, in pieces: 64 MiB, so 50 ms still allow 1 GB/s."""


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """From ``host:port``, with or without a scheme."""
        host, _, port = text.rpartition("//")[2].rstrip("/").rpartition(":")
        return cls(host, int(port))


@contextmanager
def delay_proxy(target_endpoint: str, delay_s: float, *, folder: Path) -> Iterator[str]:
    """A delaying proxy in a process of its own; yields the endpoint to use instead of ``target_endpoint``.

    Its log lies in ``folder``.
    """
    listen, health = free_ports(2)
    program = Program(
        name="the delay proxy",
        argv=(
            sys.executable,
            str(Path(__file__).resolve()),
            f"--listen={HOST}:{listen}",
            f"--health={HOST}:{health}",
            f"--target={target_endpoint}",
            f"--delay-ms={delay_s * 1000}",
        ),
        log=folder / f"delay-proxy-{listen}.log",
        port=health,
        path="/",
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    with running(program):
        yield f"http://{HOST}:{listen}"


@contextmanager
def delayed(server: S3Server, delay_s: float, *, folder: Path) -> Iterator[S3Server]:
    """The same S3 server, ``delay_s`` of round trip away."""
    with delay_proxy(server.endpoint, delay_s, folder=folder) as endpoint:
        yield dataclasses.replace(server, endpoint=endpoint)


async def serve(listen: Address, target: Address, delay_s: float, health: Address | None = None) -> None:
    """Runs the proxy until cancelled; ``health`` answers with 200 once ``listen`` is open."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await _carry(reader, writer, target, delay_s)

    async def healthy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.readline()
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(connected, *listen, limit=_PIECE_BYTES, backlog=1024)
    async with proxy:
        if health is not None:
            await asyncio.start_server(healthy, *health)
        await proxy.serve_forever()


async def _carry(
    near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter, target: Address, delay_s: float
) -> None:
    opened_at = asyncio.get_running_loop().time()
    try:
        far_reader, far_writer = await asyncio.open_connection(*target, limit=_PIECE_BYTES)
    except OSError:
        near_writer.close()
        raise
    half_s = delay_s / 2
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_direction(near_reader, far_writer, half_s, not_before=opened_at + delay_s + half_s))
            both.create_task(_direction(far_reader, near_writer, half_s, not_before=0))
    except* OSError:
        pass  # one side hung up: the other is told so below, which is what a network would do
    finally:
        near_writer.close()
        far_writer.close()


async def _direction(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float, *, not_before: float
) -> None:
    loop = asyncio.get_running_loop()
    underway: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_UNDERWAY)

    async def receive() -> None:
        piece = b"first"
        while piece:
            piece = await reader.read(_PIECE_BYTES)
            await underway.put((loop.time() + delay_s, piece))

    async def send() -> None:
        while True:
            due, piece = await underway.get()
            await asyncio.sleep(max(due, not_before) - loop.time())
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    async with asyncio.TaskGroup() as both:
        both.create_task(receive())
        both.create_task(send())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--listen", type=Address.parse, required=True, metavar="HOST:PORT")
    parser.add_argument("--target", type=Address.parse, required=True, metavar="HOST:PORT")
    parser.add_argument("--delay-ms", type=float, required=True, help="what a round trip takes longer")
    parser.add_argument("--health", type=Address.parse, metavar="HOST:PORT", help="answers 200 when the proxy is up")
    given = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(given.listen, given.target, given.delay_ms / 1000, given.health))


if __name__ == "__main__":
    main()
