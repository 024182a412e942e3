"""Where the runs of a sweep run: `local` (processes of this machine) or `ray` (a cluster with a shared directory)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from luthier.core.errors import MissingExtra, RecipeError
from luthier.sweep.grid import Point
from luthier.sweep.plan import Plan
from luthier.sweep.process import Processes

Told = Callable[[Point, int], None]
ENGINES = ("local", "ray")


def check(engine: str) -> None:
    """RecipeError for an unknown engine, MissingExtra where ray is not installed; before anything runs."""
    if engine not in ENGINES:
        raise RecipeError(f"there is no engine {engine!r}", where="--engine", remedy=" | ".join(ENGINES))
    if engine == "ray":
        _ray()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtra("the engine ray", "ray") from None
    return ray


def run_all(engine: str, plan: Plan, points: Sequence[Point], parallel: int, told: Told) -> dict[str, int]:
    """Point name → exit code. `told` hears of each as it ends. A signal stops all of them, each resumable."""
    return (_with_ray if engine == "ray" else _here)(plan, points, parallel, told)


def _here(plan: Plan, points: Sequence[Point], parallel: int, told: Told) -> dict[str, int]:
    processes = Processes(plan.threads)
    codes: dict[str, int] = {}
    with ThreadPoolExecutor(parallel) as pool:
        waiting: dict[Future[int], Point] = {
            pool.submit(processes.run, plan.words(point), plan.log(point)): point for point in points
        }
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for one in done:
                    point = waiting.pop(one)
                    codes[point.name] = one.result()
                    told(point, codes[point.name])
        except BaseException:
            processes.stop()
            raise
    return codes


def _with_ray(plan: Plan, points: Sequence[Point], parallel: int, told: Told) -> dict[str, int]:
    ray = _ray()
    ray.init(ignore_reinit_error=True, log_to_driver=False)

    def one(words: list[str], log: str, threads: int) -> int:
        return Processes(threads).run(words, Path(log))

    remote = ray.remote(num_cpus=plan.threads, max_retries=0)(one)
    codes: dict[str, int] = {}
    left = list(points)
    going: dict[Any, Point] = {}
    while left or going:
        while left and len(going) < parallel:
            point = left.pop(0)
            going[remote.remote(plan.words(point), str(plan.log(point).resolve()), plan.threads)] = point
        done, _ = ray.wait(list(going), num_returns=1)
        for reference in done:
            point = going.pop(reference)
            codes[point.name] = int(ray.get(reference))
            told(point, codes[point.name])
    return codes
