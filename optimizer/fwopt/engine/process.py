"""The engine in a process of its own, so that HTTP and text share no interpreter with it."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

from fwopt.engine.messages import Abort, Add, Ready, Refused, Reply, Request, ResetPrefixCache, Stepped, Stop
from fwopt.engine.settings import Settings
from fwopt.errors import FwoptError


class EngineProcess:
    """Handle that the server holds."""

    def __init__(self, settings: Settings) -> None:
        threads = str(settings.threads) if settings.device == "cpu" else "1"
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = threads  # inherited by the process below; read when torch is imported there
        context = mp.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: Any = context.Process(target=_serve, args=(theirs, settings), name="fwopt-engine")
        self._process.start()
        theirs.close()

    def wait_ready(self) -> Ready:
        """Blocks until it is loaded; what the user can mend is a `FwoptError`."""
        try:
            reply = self.connection.recv()
        except EOFError:
            self._process.join()
            raise EngineDiedError(self._process.exitcode) from None
        if isinstance(reply, Refused):
            self.stop()
            raise FwoptError(reply.message)
        assert isinstance(reply, Ready)
        return reply

    def send(self, request: Request) -> None:
        self.connection.send(request)

    def receive(self) -> Reply:
        reply: Reply = self.connection.recv()
        return reply

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def stop(self, patience_s: float = 10.0) -> None:
        """Ask it to end, then insist. Harmless when it is gone."""
        with contextlib.suppress(OSError):  # it has ended by itself
            self.connection.send(Stop())
        self._process.join(patience_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()


class EngineDiedError(RuntimeError):
    """The engine process ended by itself; its traceback is on stderr."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"the engine process ended with exit status {exit_code}; its last words are above")


def _serve(connection: Connection, settings: Settings) -> None:
    """Entry of the engine process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides when to stop
    from fwopt.engine.core import Engine

    try:
        engine = Engine(settings)
    except FwoptError as error:
        connection.send(Refused(str(error)))
        return
    try:
        connection.send(Ready(engine.summary, engine.kv_blocks))
        _loop(connection, engine)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the server has gone
    finally:
        engine.close()


def _loop(connection: Connection, engine: Any) -> None:
    """Between two steps, take in what has arrived; sleep when there is nothing to compute."""
    while True:
        if not engine.busy:
            engine.idle()
            connection.poll(None)
        while connection.poll():
            match connection.recv():
                case Add(id, prompt, sampling):
                    engine.add(id, prompt, sampling)
                case Abort(id):
                    engine.abort(id)
                case ResetPrefixCache():
                    engine.reset_prefix_cache()
                case Stop():
                    return
        if engine.busy:
            connection.send(Stepped(engine.step(), engine.snapshot()))
