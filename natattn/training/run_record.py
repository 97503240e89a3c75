"""run.json: what readers of the metrics need to know about the run, and what a resumed run must agree with."""

import re
import secrets
from typing import Any

from natattn.errors import UserError
from natattn.optim.settings import OptimSettings
from natattn.training.arm import Arm, weights_hash
from natattn.training.checkpoint import Outcome
from natattn.training.run_folder import config_hash
from natattn.training.settings import CHANGEABLE, REFERENCE, RunSettings

_RUN_ID = re.compile(r"[\w-]{1,64}")


def new_record(settings: RunSettings, arms: list[Arm], *, group: str | None, leaky: list[str]) -> dict[str, Any]:
    """Return the content of run.json at the start of a run; ``arms`` must still have their initial weights.

    Args:
        leaky: names of the arms that read later tokens.
    """
    optims = {arm.name: settings.optim.name for arm in arms}
    models = {arm.name: settings.model.name for arm in arms}
    if isinstance(settings.reference, OptimSettings):
        optims[REFERENCE], models[REFERENCE] = settings.reference.name, REFERENCE
    task = arms[0].task
    return {
        "task": task.kind,
        "unit": task.unit,
        "reference": REFERENCE if len(arms) > 1 else None,
        "candidate": arms[-1].name,
        "arms": {
            arm.name: {
                "optim": optims[arm.name],
                "model": models[arm.name],
                "parameters": sum(p.numel() for p in arm.model.parameters()),
                "status": "running",
                "cause": None,
            }
            for arm in arms
        },
        "status": "running",
        "steps": settings.train.steps,
        f"{task.unit}s_per_step": task.units_per_step,
        "seed": settings.seed,
        "config_hash": config_hash(settings.model_dump(mode="json"), without=CHANGEABLE),
        "run_id": secrets.token_hex(6),
        "group": group,
        "initial_weights_hash": weights_hash(arms[0].model),
        "identical": False,
        "data": task.data_summary(),
        "device": str(settings.device),
        "ranks": arms[0].ranks.size,
        "label": f"{settings.model.name} · {settings.optim.name} · {settings.size.name}",
        "leaky": leaky,
    }


def finish_record(record: dict[str, Any], arms: list[Arm], outcome: Outcome, *, identical: bool) -> None:
    """Enter how the run ended."""
    record["status"] = outcome
    record["identical"] = identical
    for arm in arms:
        status = "interrupted" if outcome == "interrupted" else "finished"
        record["arms"][arm.name].update(status=status if arm.active else arm.status, cause=arm.cause)


def resumed_record(record: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a resumed run: the new one with the identifier and group of the saved one.

    Raises: UserError if the data or the initial weights differ from those that the run began with.
    """
    if not saved:
        return record
    data = saved.get("data")
    for what, now, then in (
        ("the data", record["data"]["fingerprint"], data.get("fingerprint") if isinstance(data, dict) else None),
        ("the initial weights", record["initial_weights_hash"], saved.get("initial_weights_hash")),
    ):
        if now != then:
            was = then[:12] if isinstance(then, str) else "unknown"
            raise UserError(f"resume: {what} changed since the run began ({was} → {now[:12]}); start a new run")
    run_id, group = saved.get("run_id"), saved.get("group")
    if not (isinstance(run_id, str) and _RUN_ID.fullmatch(run_id)):  # it becomes part of a path
        run_id = record["run_id"]
    return {**record, "run_id": run_id, "group": group if isinstance(group, str) else None}
