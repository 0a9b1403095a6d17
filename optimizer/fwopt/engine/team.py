"""All ranks of one engine: this process is rank 0, every other rank a process that follows it plan by plan."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fwopt.engine.batch import Plan
from fwopt.engine.cache import available_bytes, count_blocks
from fwopt.engine.parallel import Ranks, connect, disconnect
from fwopt.engine.runner import Runner
from fwopt.engine.settings import Settings
from fwopt.errors import FwoptError


class Team:
    """Loads every rank on construction and gives all of them as many KV blocks as the smallest has room for."""

    def __init__(self, settings: Settings) -> None:
        size = settings.candidate.parallelism.tp
        self._folder = tempfile.TemporaryDirectory(prefix="fwopt-") if size > 1 else None
        meeting = f"file://{Path(self._folder.name) / 'ranks'}" if self._folder else ""
        self._workers: list[tuple[Any, Connection]] = []
        try:
            for rank in range(1, size):
                self._workers.append(_start(settings, Ranks(rank, size), meeting))
            self.runner, room = _load(settings, Ranks(0, size), meeting)
            self.kv_blocks = min([room, *(self._hear(conn) for _, conn in self._workers)])
            for _, conn in self._workers:
                conn.send(self.kv_blocks)
            self.runner.allocate(self.kv_blocks)
            self.runner.warm_up()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _hear(conn: Connection) -> int:
        try:
            answer = conn.recv()
        except EOFError:
            raise RuntimeError("a tensor-parallel worker ended while loading; its last words are above") from None
        if isinstance(answer, str):
            raise FwoptError(answer)
        return int(answer)

    def run(self, plan: Plan) -> torch.Tensor:
        for _, conn in self._workers:
            conn.send(plan)
        return self.runner.run(plan)

    def close(self) -> None:
        """End the other ranks; harmless when they are gone."""
        for _, conn in self._workers:
            conn.close()
        for process, _ in self._workers:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self._workers = []
        disconnect()
        if self._folder is not None:
            self._folder.cleanup()


def _load(settings: Settings, ranks: Ranks, meeting: str) -> tuple[Runner, int]:
    """(loaded runner, KV blocks this rank has room for)."""
    runner = Runner(settings, ranks)
    connect(ranks, runner.device, meeting)
    runner.rehearse()
    return runner, count_blocks(settings, runner.block_bytes, available_bytes(settings, runner.device))


def _start(settings: Settings, ranks: Ranks, meeting: str) -> tuple[Any, Connection]:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_follow, args=(theirs, settings, ranks, meeting), name=f"fwopt-rank{ranks.rank}")
    process.start()
    theirs.close()
    return process, ours


def _follow(conn: Connection, settings: Settings, ranks: Ranks, meeting: str) -> None:
    """Life of a rank other than 0: it computes what it is sent until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        runner, room = _load(settings, ranks, meeting)
    except FwoptError as error:
        conn.send(str(error))
        return
    conn.send(room)
    try:
        runner.allocate(conn.recv())
        runner.warm_up()
        while True:
            runner.run(conn.recv())
    except (EOFError, ConnectionResetError):
        os._exit(0)  # rank 0 has gone, and with it every collective that could be waited for
