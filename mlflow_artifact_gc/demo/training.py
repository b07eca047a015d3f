"""The data scientist's notebook: a process of its own, as on a real site, with nothing but MLflow's own client."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final, TextIO, cast

from mlflow_artifact_gc.demo import StepFailed
from mlflow_artifact_gc.demo.cast import ALIAS, CHAMPION, EXPERIMENT, MODEL, OLD, ROLES, Run
from mlflow_artifact_gc.quantities import show_size

_MB: Final = 1_000_000
_LOG_TAIL_LINES: Final = 10


def train(folder: Path, environ: Mapping[str, str], say: Callable[[str], None]) -> dict[str, Run]:
    """Have all runs logged, one registered and one deleted; returns them by name.

    Args:
        environ: ``MLFLOW_TRACKING_URI`` names the server.
        say: is told of each step as it happens.

    Raises:
        StepFailed: MLflow's client ended with an error.
    """
    # It works in the folder: whatever MLflow leaves in its working directory goes with it.
    argv = [sys.executable, "-m", __name__]
    log = folder / "training.log"
    runs: dict[str, Run] = {}
    with (
        log.open("w") as noise,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=noise, text=True, env=environ, cwd=folder) as child,
    ):
        try:
            for line in child.stdout or ():
                told = json.loads(line)
                say(told["text"])
                if "id" in told:
                    runs[told["name"]] = Run.named(told["name"], told["id"])
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        raise StepFailed(f"MLflow's client ended with exit code {child.returncode}:\n{said}")
    return runs


def _work(folder: Path, told: TextIO) -> None:
    import mlflow

    def tell(text: str, **more: str) -> None:
        told.write(json.dumps({"text": text.rstrip(), **more}) + "\n")
        told.flush()

    mlflow.set_experiment(EXPERIMENT)
    ids: dict[str, str] = {}
    for role in ROLES:
        files = _outputs_of_a_training(folder / role.name, role.epochs)
        with mlflow.start_run(run_name=role.name) as active:
            mlflow.log_params({"epochs": role.epochs})
            mlflow.log_metrics({"auc": 0.7 + role.epochs / 40})
            mlflow.log_artifacts(str(folder / role.name))
        ids[role.name] = run_id = active.info.run_id
        size = show_size(sum(path.stat().st_size for path in files))
        text = f"logged      {role.name:<15} {len(files):>2} objects, {size:>7}  run {run_id}"
        tell(text, name=role.name, id=run_id)

    version = mlflow.register_model(f"runs:/{ids[CHAMPION.name]}/model", MODEL)
    mlflow.MlflowClient().set_registered_model_alias(MODEL, ALIAS, version.version)
    tell(f"registered  {CHAMPION.name:<15} as {MODEL}, version {version.version}, alias @{ALIAS}")
    mlflow.delete_run(ids[OLD.name])
    tell(f"deleted     {OLD.name:<15} before anything is switched on")


def _outputs_of_a_training(folder: Path, epochs: int) -> list[Path]:
    """A model, a checkpoint for each epoch, a plot."""
    dice = random.Random(folder.name)  # noqa: S311 - bytes that do not compress, nothing secret
    contents = {
        "model/MLmodel": f"artifact_path: model\nflavors:\n  demo:\n    epochs: {epochs}\n".encode(),
        "model/weights.bin": dice.randbytes(3 * _MB),
        "plots/roc.png": dice.randbytes(60_000),
        **{f"checkpoints/epoch_{number}/weights.bin": dice.randbytes(3 * _MB) for number in range(epochs)},
        **{f"checkpoints/epoch_{number}/optimizer.bin": dice.randbytes(2 * _MB) for number in range(epochs)},
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [folder / name for name in contents]


if __name__ == "__main__":
    # MLflow prints too, and that goes to the log.
    with (
        tempfile.TemporaryDirectory(prefix="training-", dir=Path.cwd()) as _name,
        redirect_stdout(sys.stderr),
    ):
        _work(Path(_name), cast("TextIO", sys.__stdout__))
