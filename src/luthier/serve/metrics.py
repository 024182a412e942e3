"""What /metrics tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.serve.app import Server


def metrics_text(server: Server) -> str:
    """Prometheus' text format."""
    counters = server.worker.engine.counters
    lines = [
        f"luthier_steps_total {counters.steps}",
        f"luthier_prompt_tokens_total {counters.prompt_tokens}",
        f"luthier_reused_prompt_tokens_total {counters.reused_tokens}",
        f"luthier_new_tokens_total {counters.new_tokens}",
        f"luthier_inflight {server.inflight}",
        f"luthier_refused_total {server.refused}",
        f"luthier_kv_bytes_per_slot {server.worker.engine.pool.bytes_per_slot()}",
        f"luthier_free_slots {len(server.worker.engine.free)}",
        f"luthier_restarts_total {server.worker.restarts}",
        *(f'luthier_finished_total{{reason="{name}"}} {count}' for name, count in sorted(counters.finished.items())),
    ]
    return "\n".join(lines) + "\n"
