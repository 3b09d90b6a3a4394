"""Which device is taken, and what is said where a GPU is wanted and cannot be used. Most machines are pretended."""

import importlib.util
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import napari_gsvolume as gsv
from napari_gsvolume.cli.app import main
from napari_gsvolume.devices import available_device, devices, gpu_problem, gsplat_problem, unused_gpu_note

Pretend = Callable[..., None]

NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU.\nMore lines."
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver."
NO_CODE = "CUDA error: no kernel image is available for execution on the device\nCompile with `TORCH_USE_CUDA_DSA`."


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretend]:
    """Return a function that pretends a machine with GPUs, as torch and numba-cuda would tell of it."""
    zeros, find_spec = torch.zeros, importlib.util.find_spec

    def pretend(
        *,
        gpus: int = 1,
        torch_cuda: str | None = "13.0",
        torch_error: Exception | None = None,
        numba_cuda: bool = True,
        numba_error: Exception | None = None,
        compiler: bool = True,
        driver: tuple[int, int] = (13, 0),
        toolkit: tuple[int, int] = (13, 0),
    ) -> None:
        def first(*args: Any, device: Any = "cpu", **options: Any) -> torch.Tensor:
            if torch_error is not None and device == "cuda":
                raise torch_error
            return zeros(*args, device="cpu" if device == "cuda" else device, **options)

        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(torch, "zeros", first)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"NVIDIA Card {index}")
        if not numba_cuda:
            monkeypatch.setattr(
                importlib.util, "find_spec", lambda name: None if name == "numba_cuda" else find_spec(name)
            )
        else:
            pytest.importorskip("numba_cuda")
            from numba import cuda
            from numba.cuda.cudadrv import driver as drivers
            from numba.cuda.cudadrv import nvvm, runtime

            monkeypatch.setattr(cuda, "cuda_error", lambda: numba_error)
            monkeypatch.setattr(nvvm, "is_available", lambda: compiler)
            monkeypatch.setattr(drivers, "driver", SimpleNamespace(get_version=lambda: driver))
            monkeypatch.setattr(runtime, "runtime", SimpleNamespace(get_version=lambda: toolkit))
        gpu_problem.cache_clear()

    yield pretend
    gpu_problem.cache_clear()


# What is wrong with a machine, and words that the user is told.
PROBLEMS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "torch without CUDA": ({"torch_cuda": None}, ("PyTorch is built without CUDA", "docs/gpu.md")),
    "no driver": ({"torch_error": RuntimeError(NO_DRIVER), "gpus": 0}, ("Found no NVIDIA driver on your system)",)),
    "driver too old": ({"torch_error": RuntimeError(OLD_DRIVER)}, ("too old (found version 11040))",)),
    "GPU too old or new": ({"torch_error": RuntimeError(NO_CODE)}, ("no kernel image is available",)),
    "torch broken": ({"torch_error": AssertionError("Torch not compiled with CUDA enabled")}, ("not compiled",)),
    "no numba-cuda": ({"numba_cuda": False}, ('install "napari-gsvolume[cuda]"', "docs/gpu.md")),
    "numba without driver": ({"numba_error": OSError("No libcuda.so\nSearched: /usr")}, ("(No libcuda.so)",)),
    "no compiler": ({"compiler": False}, ("no compiler", 'install "napari-gsvolume[cuda]"')),
    "CUDA 13 on a driver for 12": (
        {"driver": (12, 8)},
        ("driver is for CUDA 12.8", "compiles for CUDA 13", "update the driver", "numba-cuda[cu12]"),
    ),
}


class TestOnPretendedMachines:
    @pytest.mark.parametrize("case", PROBLEMS)
    def test_why_no_gpu_can_be_used(self, machine: Pretend, refused: Any, case: str) -> None:
        broken, words = PROBLEMS[case]
        machine(**broken)
        problem = gpu_problem()
        assert problem is not None
        assert problem.endswith(".")
        assert not problem[0].isupper() or problem.startswith("PyTorch")
        for wanted in ("cuda", "cuda:0", "cuda:1"):
            with refused(ValueError, repr(wanted), *words, "choose the device 'cpu'") as caught:
                available_device(wanted)
            assert str(caught.value).count(". ") == 0
        assert available_device("auto") == available_device("cpu") == "cpu"
        assert list(devices()) == ["auto", "cpu"]

    @pytest.mark.parametrize("case", PROBLEMS)
    def test_a_gpu_that_auto_leaves_alone_is_noted(self, machine: Pretend, case: str) -> None:
        broken, _ = PROBLEMS[case]
        machine(**broken)
        has_one = case not in ("torch without CUDA", "no driver")
        volume = gsv.phantoms.vessel_phantom(16)[0]
        for device, notes in (("auto", (f"There is a GPU, but the CPU computes: {gpu_problem()}",)), ("cpu", ())):
            result = gsv.fit(volume, gaussians=3, iterations=1, device=device)
            assert result.notes == (notes if has_one else ())
            assert result.device == result.report()["device"] == "cpu"

    def test_a_gpu_that_is_used_is_not_noted(self, machine: Pretend) -> None:
        machine()
        assert unused_gpu_note() is None

    def test_a_gpu_is_taken(self, machine: Pretend) -> None:
        machine()
        assert gpu_problem() is None
        assert available_device("auto") == available_device("cuda") == available_device("cuda:0") == "cuda:0"
        assert available_device("cpu") == "cpu"

    def test_a_driver_newer_than_the_compiler_is_taken(self, machine: Pretend) -> None:
        machine(driver=(13, 2), toolkit=(12, 9))
        assert available_device("auto") == "cuda:0"

    def test_one_of_several_gpus(self, machine: Pretend, refused: Any) -> None:
        machine(gpus=2)
        assert available_device("cuda:1") == "cuda:1"
        assert devices()["cuda:1"] == "cuda:1 (NVIDIA Card 1)"
        assert list(devices()) == ["auto", "cpu", "cuda:0", "cuda:1"]
        with refused(ValueError, "no device 'cuda:2'", "cuda:0, cuda:1"):
            available_device("cuda:2")

    def test_the_cpu_asks_nobody(self, machine: Pretend) -> None:
        machine(torch_error=RuntimeError(NO_DRIVER))
        assert available_device("cpu") == "cpu"
        assert gpu_problem.cache_info().misses == 0

    def test_it_is_found_out_once(self, machine: Pretend) -> None:
        machine()
        for _ in range(3):
            available_device("auto")
            devices()
        assert gpu_problem.cache_info().misses == 1


class TestSettings:
    @pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:11"])
    def test_names_of_devices(self, name: str) -> None:
        assert gsv.FitSettings(device=name).device == name

    @pytest.mark.parametrize("name", ["tpu", "", "CUDA", "cuda:", "cuda:-1", "cuda:1\n", "cuda:one", "cpu:0"])
    def test_others(self, refused: Any, name: str) -> None:
        with refused(ValueError, "device: choose auto, cpu, cuda, or cuda:1 for the second GPU", repr(name)):
            gsv.fit_steps(torch.rand(4, 4).numpy(), device=name)


class TestInTheShell:
    @pytest.fixture
    def path(self, tmp_path: Any) -> str:
        from napari_gsvolume.io.nifti import write_nifti

        write_nifti(tmp_path / "v.nii", *gsv.phantoms.vessel_phantom(16))
        return str(tmp_path / "v.nii")

    @pytest.mark.parametrize(
        ("device", "words"),
        [("cuda", "The device 'cuda' cannot be used: the kernels need"), ("tpu", "--device: choose auto, cpu, cuda")],
    )
    def test_refusals(self, machine: Pretend, path: str, capfd: Any, device: str, words: str) -> None:
        machine(numba_cuda=False)
        assert main(["fit", path, "--device", device]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith(f"gsvolume: {words}")
        assert err.count("\n") == 1

    @pytest.mark.parametrize("command", ["fit", "ablate"])
    def test_the_device_is_an_option(self, capfd: Any, command: str) -> None:
        assert main([command, "--help"]) == 0
        assert "--device" in capfd.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(gpu_problem() is not None, reason=gpu_problem() or "")
def test_a_fit_on_the_gpu_is_as_good_as_on_the_cpu() -> None:
    volume, _ = gsv.phantoms.vessel_phantom(32)
    psnr = {
        device: gsv.fit(volume, gaussians=100, iterations=20, device=device).psnr_db for device in ("cpu", "cuda:0")
    }
    assert abs(psnr["cuda:0"] - psnr["cpu"]) < 0.5


def test_on_this_machine() -> None:
    """Whatever this machine has, the answers go together."""
    gpu_problem.cache_clear()
    if gpu_problem() is None:
        assert available_device("auto") == "cuda:0"
        assert "cuda:0" in devices()
    else:
        assert available_device("auto") == "cpu"
        assert list(devices()) == ["auto", "cpu"]


class TestGsplat:
    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
        def installed(there: bool) -> None:
            find_spec = importlib.util.find_spec
            monkeypatch.setattr(
                importlib.util, "find_spec", lambda n: (object() if there else None) if n == "gsplat" else find_spec(n)
            )

        return installed

    def test_without_a_gpu(self, machine: Pretend, installed: Callable[[bool], None]) -> None:
        machine(torch_cuda=None)
        installed(True)
        assert (gsplat_problem() or "").startswith("gsplat needs a GPU: this PyTorch is built without CUDA")

    def test_with_a_gpu(self, machine: Pretend, installed: Callable[[bool], None]) -> None:
        machine()
        installed(True)
        assert gsplat_problem() is None
        installed(False)
        assert "gsplat is not installed" in (gsplat_problem() or "")

    def test_the_shell_tells(self, machine: Pretend, installed: Callable[[bool], None], capsys: Any) -> None:
        machine(gpus=2)
        installed(True)
        assert main(["devices"]) == 0
        said = capsys.readouterr().out
        assert "cuda:1 (NVIDIA Card 1)" in said
        assert "GPU: can be used." in said
        assert "gsplat: can be used." in said
