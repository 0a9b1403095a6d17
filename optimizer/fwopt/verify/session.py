"""One candidate on a real server: deployed from the plan's own files, replayed, held against its promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fwopt import deploy
from fwopt.atomic import written_whole
from fwopt.errors import InputError, RunFolderError
from fwopt.live import Endpoint, Recorded, Replay, ReplayOptions, replay_sync
from fwopt.live.servers import make_server
from fwopt.live.servers.base import Launch, Server, ServerError
from fwopt.metrics.records import FINISHED
from fwopt.report.verification import markdown
from fwopt.search.job import Job
from fwopt.spec.candidate import Candidate
from fwopt.spec.plan import Entry, LiveTrial, Plan
from fwopt.spec.verification import Verification
from fwopt.targets.models import local_folder
from fwopt.verify.judging import evaluate, verification
from fwopt.verify.metrics import compared
from fwopt.verify.promise import Promise
from fwopt.verify.slices import Chosen, choose_slice

Progress = Callable[[str, int, int], None]
"""(what is being done, requests whose fate is known, requests in all)."""


@dataclass(frozen=True, slots=True)
class Where:
    """How the server comes about: an endpoint that is there, or one that is started from exported files."""

    endpoint: Endpoint | None = None
    version: str | None = None
    """Of the engine at that endpoint, where it tells."""
    model: str | None = None
    """Weights to load instead of those the files name."""
    tokenizer: Path | None = None
    """Prompts are made of its ordinary tokens; None: of ids that are ordinary in every tokenizer known to us."""
    ready_timeout_s: float = 900.0


@dataclass(slots=True)
class Session:
    """Live replays of one plan's candidates, all on the same stretch of the workload."""

    job: Job
    plan: Plan
    folder: Path
    """The run folder."""
    where: Where
    requests: int | None
    """Length of the stretch; None: the whole workload."""
    progress: Progress = lambda what, done, of: None
    _chosen: Chosen | None = None

    def promise(self, candidate: Candidate) -> Promise:
        return Promise.of(self.job.evaluator, candidate, compared(self.job.inputs.objective))

    @property
    def stretch(self) -> Chosen:
        """Chosen by the simulation of the plan's leader, once."""
        if self._chosen is None:
            leader = self.plan.chosen or self.plan.nearest_miss or self.plan.baseline
            if leader is None:
                raise RunFolderError(f"{self.folder} holds no deployment to replay (status {self.plan.status})")
            workload = self.job.traffic.workload
            self._chosen = choose_slice(workload, self.requests, self.promise(leader.candidate).figures)
        return self._chosen

    def place(self, candidate: Candidate) -> Path:
        return self.folder / "live" / candidate.id

    def known(self, candidate: Candidate) -> Verification | None:
        """An earlier valid replay of the same candidate on the same stretch."""
        path = self.place(candidate) / VERIFICATION
        if not path.is_file():
            return None
        found = read_verification(path)
        return found if found.valid and found.slice.digest == self.stretch.workload.digest else None

    def measure(self, entry: Entry, *, again: bool = True) -> LiveTrial:
        """Deploy, replay and judge; a server that fails is an outcome. `again` False: an earlier replay is taken."""
        found = None if again else self.known(entry.candidate)
        if found is not None:
            return self._trial(found, Replay.load(self.place(entry.candidate) / REPLAY))
        place = self.place(entry.candidate)
        place.mkdir(parents=True, exist_ok=True)
        (place / VERIFICATION).unlink(missing_ok=True)
        try:
            run, version = self._served(entry, place)
        except ServerError as error:
            outcome = error.rejected(entry.candidate)
            return LiveTrial(
                candidate=entry.candidate, outcome=outcome, verification=None, folder=self._folder(entry.candidate)
            )
        return self._judged(entry, run, version)

    def judge(self, entry: Entry, path: Path) -> LiveTrial:
        """A replay that was made before, of the same stretch."""
        run = Replay.load(path)
        if run.header.workload_digest != self.stretch.workload.digest:
            raise InputError(
                f"{path}: is a replay of other requests (workload {run.header.workload_digest}) than this plan's "
                f"({self.stretch.workload.digest}); name the same trace, rate and --requests"
            )
        self.place(entry.candidate).mkdir(parents=True, exist_ok=True)
        return self._judged(entry, run, None)

    def _judged(self, entry: Entry, run: Replay, version: str | None) -> LiveTrial:
        """Keep the replay, hold it against the promise, keep that too."""
        place = self.place(entry.candidate)
        run.save(place / REPLAY)
        found = verification(self.plan, self.promise(entry.candidate), self.stretch, run, version)
        write_verification(found, place)
        return self._trial(found, run)

    def _trial(self, found: Verification, run: Replay) -> LiveTrial:
        return LiveTrial(
            candidate=found.candidate,
            outcome=evaluate(found, self.job, run),
            verification=found,
            folder=self._folder(found.candidate),
        )

    def _folder(self, candidate: Candidate) -> str:
        return str(self.place(candidate).relative_to(self.folder))

    def _served(self, entry: Entry, place: Path) -> tuple[Replay, str | None]:
        """(the replay, version of the engine that answered, where it tells)."""
        if self.where.endpoint is not None:
            return self._replay(self.where.endpoint, entry.candidate), self.where.version
        server = self._server(entry, place)
        self.progress(f"starting {self.plan.engine.name}: {entry.candidate.label}", 0, 0)
        with server as endpoint:
            run = self._replay(endpoint, entry.candidate)
            if not (run.records.status == FINISHED).any():
                server.check()  # nothing was answered: the server's own last words say more
            return run, server.identity.version if server.identity else None

    def _replay(self, endpoint: Endpoint, candidate: Candidate) -> Replay:
        options = ReplayOptions(tokenizer=self.where.tokenizer, prefix_caching=candidate.batching.prefix_caching)
        what = f"replaying on {endpoint.url}: {candidate.label}"
        return replay_sync(
            endpoint,
            self.stretch.workload,
            Recorded(),
            options,
            progress=lambda done, of: self.progress(what, done, of),
        )

    def _server(self, entry: Entry, place: Path) -> Server:
        if self.where.model is None:
            require_weights(entry, self.plan)
        name = self.plan.engine.name
        plan = self.plan.model_copy(update={"chosen": entry})
        deploy.write(plan, place / "deploy")
        launch = Launch(
            folder=place / "deploy" / name,
            scratch=place / "server",
            model=self.where.model or local_folder(self.plan.model.name),
            ready_timeout_s=self.where.ready_timeout_s,
        )
        return make_server(name, launch)


def require_weights(entry: Entry, plan: Plan) -> None:
    """Refuse a candidate whose exported files name no weights that could be loaded; llama.cpp looks for its file."""
    if entry.needs_checkpoint is not None and plan.engine.name != "llamacpp":
        advice = "name it with --model, or measure another candidate"
        raise InputError(f"{entry.candidate.label} needs {entry.needs_checkpoint}; {advice}")


VERIFICATION, REPLAY = "verification.json", "replay.jsonl.gz"


def write_verification(found: Verification, place: Path) -> None:
    """`verification.json` and `verification.md`."""
    texts = {VERIFICATION: found.model_dump_json(indent=2) + "\n", "verification.md": markdown(found)}
    for name, text in texts.items():
        with written_whole(place / name) as beside:
            beside.write_text(text, encoding="utf-8")


def read_verification(path: Path) -> Verification:
    try:
        return Verification.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split())[:160]
        raise RunFolderError(f"{path} is no verification that this fwopt reads: {first}") from None
