"""Training on a CUDA device: mixed precision beside full precision, and a run taken up there."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
for needed in ("torchvision", "timm", "anndata", "onnx", "hypothesis"):
    pytest.importorskip(needed)

from training_runs import SECTIONS, config

from mclst.training.contrastive import Training, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("system", ["mclstexp", "bleep"])
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-2), ("bf16", 0.05), ("fp16", 0.05)])
def test_a_device_trains_like_the_cpu(system: str, precision: str, within: float) -> None:
    of_system = {"system": system, "positions": "learnable" if system == "mclstexp" else "none"}
    on_cpu = train(SECTIONS, config(**of_system)).losses
    on_device = train(SECTIONS, config(**of_system, device="cuda", precision=precision)).losses
    assert on_device == pytest.approx(on_cpu, rel=within)


def test_a_device_resumes_with_its_rng_and_loss_scale() -> None:
    whole = Training(SECTIONS, config(device="cuda", precision="fp16", epochs=3))
    for _ in range(3):
        whole.run_epoch()
    first = Training(SECTIONS, config(device="cuda", precision="fp16", epochs=3))
    first.run_epoch()
    second = Training(SECTIONS, config(device="cuda", precision="fp16", epochs=3))
    second.resume(first.state())
    second.run_epoch()
    second.run_epoch()
    assert second.finished and second.losses == pytest.approx(whole.losses, rel=1e-2)


def test_a_run_that_began_on_the_cpu_goes_on_on_a_device() -> None:
    first = Training(SECTIONS, config(epochs=2))
    first.run_epoch()
    second = Training(SECTIONS, config(device="cuda", epochs=2))
    second.resume(first.state())
    second.run_epoch()
    first.run_epoch()
    assert second.finished and second.losses == pytest.approx(first.losses, rel=1e-2)
