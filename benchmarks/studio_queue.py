"""How fast the studio's queue is: latency of an answer with the card after it, and answers a second with many threads.

    python benchmarks/studio_queue.py --tasks 100000                       a SQLite file, synchronous=FULL
    python benchmarks/studio_queue.py --url postgresql+psycopg://...       an empty database of a server

Members of a project with golds, hidden repeats, a guideline and an overlap slice answer through the service layer. The
store is made first (`--keep FILE` keeps it, and uses it again).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from itertools import combinations, islice
from pathlib import Path

from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.checks import add_golds
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.projects import Checks, ProjectConfig, add_annotators, create_project, publish_guideline
from alignloop.feedback.queue import answer, claim, my_progress, progress
from alignloop.feedback.tasks import Overlap, create_tasks
from alignloop.store import Store
from alignloop.store import tables as t

SLUG = "bench"
PER_PROMPT = 15  # completions of a prompt: 105 pairs
GOLDS = 200


def build(store: Store, tasks: int) -> None:
    """A project of so many tasks over prompts of fifteen answers each, three votes on a fifth of them, 200 golds."""
    prompts = -(-(tasks + GOLDS) // (PER_PROMPT * (PER_PROMPT - 1) // 2))
    words = "Because the light is scattered by the air, blue more than red. " * 8
    store.add_prompts([Prompt(f"p{i}", (Message("user", f"Why is the sky blue? ({i})"),)) for i in range(prompts)])
    for i in range(prompts):
        texts = [(f"p{i}-{k}", f"{k}. {words}") for k in range(PER_PROMPT)]
        store.add_completions([Completion(c, f"p{i}", (Message("assistant", text),)) for c, text in texts])
    checks = Checks(gold=0.05, repeat=0.03, repeat_gap=20)
    create_project(store, SLUG, ProjectConfig(checks=checks))
    publish_guideline(store, SLUG, "Prefer what a child of ten would understand.")
    every = ((f"p{i}-{a}", f"p{i}-{b}") for i in range(prompts) for a, b in combinations(range(PER_PROMPT), 2))
    add_golds(store, SLUG, [(pair, {"sign": 1}, "") for pair in islice(every, GOLDS)])
    create_tasks(store, SLUG, list(islice(every, tasks)), overlap=Overlap())


def join(store: Store, names: list[str]) -> None:
    """Make these people members of the project."""
    ids = add_annotators(store, names)
    with store.write() as session:
        [project] = session.query(t.Project).filter_by(slug=SLUG).all()
        for person in ids:
            if session.get(t.Membership, (project.id, person)) is None:
                session.add(t.Membership(project_id=project.id, annotator_id=person, role="annotator"))


def work(store: Store, name: str, answers: int, took: list[float]) -> None:
    """Answer so many cards; the milliseconds of each answer with the card after it go to `took`."""
    card = claim(store, SLUG, name)
    for k in range(answers):
        if card is None:
            return
        began = time.perf_counter()
        card = answer(store, card, Verdict((k % 5) - 2, active_ms=20_000)).next
        took.append(1000 * (time.perf_counter() - began))


def report(title: str, took: list[float], began: tuple[float, float]) -> None:
    """One line of figures; CPU is this process's own, which a busy machine changes less than the rate."""
    seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    cuts = statistics.quantiles(took, n=100)
    print(
        f"{title}: {len(took)} answers, {len(took) / seconds:.0f}/s, "
        f"p50 {cuts[49]:.1f} ms, p95 {cuts[94]:.1f} ms, p99 {cuts[98]:.1f} ms, CPU {1000 * cpu / len(took):.1f} ms",
        flush=True,
    )


def measure(store: Store, answers: int, threads: int) -> None:
    """One person alone, many at once, and the two pages that count."""
    names = [f"ann-{k}" for k in range(threads)]
    join(store, [*names, "alone"])
    took: list[float] = []
    began = (time.perf_counter(), time.process_time())
    work(store, "alone", answers, took)
    report("one person", took, began)
    took = []
    workers = [threading.Thread(target=work, args=(store, name, answers // threads, took)) for name in names]
    began = (time.perf_counter(), time.process_time())
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    report(f"{threads} at once", took, began)
    for title, ask in (
        ("progress", lambda: progress(store, SLUG)),
        ("own progress", lambda: my_progress(store, SLUG, "alone")),
    ):
        asked_at = time.perf_counter()
        ask()
        print(f"{title}: {1000 * (time.perf_counter() - asked_at):.0f} ms")


def main() -> None:
    """Build, then measure one person alone and many at once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--answers", type=int, default=2_000, help="of one person, and of all the threads together")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--url", help="the database; a file in a temporary folder where left out")
    parser.add_argument("--keep", type=Path, help="a SQLite file to keep")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Store(args.url or args.keep or Path(folder) / "bench.db") as store:
        began = time.perf_counter()
        with store.read() as session:
            made = session.query(t.Project).filter_by(slug=SLUG).count()
        if not made:
            build(store, args.tasks)
            print(f"built {args.tasks} tasks in {time.perf_counter() - began:.0f} s", flush=True)
        measure(store, args.answers, args.threads)


if __name__ == "__main__":
    main()
