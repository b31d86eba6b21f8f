"""`fsad doctor` finds a sound installation sound, and a broken one broken."""

import json
import sys

import pytest
import torch
from command import fsad
from rich.console import Console

from fsad import doctor, functional, kernel_check
from fsad.arguments import tf32_is_allowed


def test_a_sound_installation():
    done = fsad("doctor", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and facts["ok"] and facts["problem"] is None
    assert facts["versions"]["torch"].startswith(torch.__version__)
    assert facts["native"]["compiled"]["cpu"] and facts["native"]["used"]["cpu"].startswith("native")
    checked = {(c["device"], c["dtype"], c["kernel"]) for c in facts["checks"]}
    for dtype in ("float32", "float64"):
        for kernel in ("forward", "backward", "double backward", "peak", "relative"):
            assert ("cpu", dtype, kernel) in checked
    assert all(c["cases"] >= 9 and c["error"] <= c["allowed"] for c in facts["checks"])
    assert all(c["path"] and c["milliseconds"] > 0 for c in facts["checks"])
    # Every instruction set that was compiled is checked and timed, or left out for a reason.
    for isa in facts["native"]["compiled"]["cpu"]:
        checked = any(c["path"] == isa for c in facts["checks"]) and facts["native"]["milliseconds"][isa] > 0
        assert checked != any(isa in reason for reason in facts["left_out"])


def test_what_a_gpu_cannot_do_is_said(monkeypatch, capsys):
    monkeypatch.setitem(kernel_check.PRECISIONS, "old", kernel_check.PRECISIONS["cuda"])
    monkeypatch.setitem(kernel_check.SIZES, "old", ())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "An Old GPU")
    _, left_out = kernel_check.check_kernels(["old"])
    assert len(left_out) == 1 and "An Old GPU has 7.5" in left_out[0]
    monkeypatch.setattr(kernel_check, "check_kernels", lambda devices: ([], left_out))
    monkeypatch.setattr(doctor, "_check_other", lambda isa, facts: None)
    doctor.run_doctor(Console(width=200), as_json=False)
    assert f"Not checked: {left_out[0]}" in capsys.readouterr().out


def test_tf32_is_allowed_for_its_own_check_alone(monkeypatch):
    """On a CPU, where it is of no effect, in the place of a GPU."""
    allowed = []
    usual = functional.sparse_code

    def watched(*arguments, backend, **options):
        allowed.append((tf32_is_allowed(), backend))
        return usual(*arguments, backend=backend, **options)

    monkeypatch.setattr(functional, "sparse_code", watched)
    monkeypatch.setitem(kernel_check.PRECISIONS, "cpu", ("float32", "tf32"))
    problem = kernel_check._Problem(kernel_check.SMALL, 1, 3, "soft")
    monkeypatch.setattr(kernel_check, "_problems", lambda _: [problem])
    before = torch.backends.cuda.matmul.fp32_precision
    checks, _ = kernel_check.check_kernels(["cpu"])
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert allowed.count((True, "native")) == allowed.count((False, "native")) == 1
    assert (True, "reference") not in allowed
    bounds = {c["dtype"]: c["allowed"] for c in checks if c["kernel"] == "forward"}
    assert 100 * bounds["float32"] < bounds["tf32"] < 0.02


def test_tables_for_people():
    done = fsad("doctor")
    assert done.returncode == 0
    for word in ("Versions", "Native library", "double backward", "All is well"):
        assert word in done.stdout


@pytest.mark.parametrize("fault", [1e-4, float("nan")])
def test_a_wrong_kernel_is_found(monkeypatch, capsys, fault):
    right = functional.sparse_code

    def wrong(features, *arguments, backend, **options):
        result = right(features, *arguments, backend=backend, **options)
        return result * (1 + fault) if backend == "native" else result

    monkeypatch.setattr(functional, "sparse_code", wrong)
    monkeypatch.setattr(doctor, "_check_other", lambda isa, facts: None)
    assert doctor.run_doctor(Console(width=200), as_json=False) is False
    shown = capsys.readouterr().out
    assert "FAILED" in shown and "disagree with the reference" in shown


def test_kernels_that_crash_are_found(monkeypatch, capsys):
    monkeypatch.setattr(kernel_check, "check_kernels", lambda devices: ([], []))
    monkeypatch.setattr(
        doctor.subprocess, "run", lambda *a, **k: doctor.subprocess.CompletedProcess(a, -4, "", "illegal")
    )
    assert doctor.run_doctor(Console(width=200), as_json=False) is False
    assert "ended with -4: illegal" in capsys.readouterr().out


def test_a_missing_library_is_said_plainly(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fsad_ext", None)
    assert doctor.run_doctor(Console(width=200), as_json=False) is False
    assert "Not well" in capsys.readouterr().out
