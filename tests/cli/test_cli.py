import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.main import get_command

import napari_gsvolume.fitting
from napari_gsvolume import FitSettings, GaussianVolume, Grid, __version__
from napari_gsvolume.cli.app import app
from napari_gsvolume.cli.progress import StopSignal
from napari_gsvolume.cli.sections import COMMAND_SECTIONS
from napari_gsvolume.io.nifti import read_nifti, write_nifti
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.rendering.settings import SplatTrainingSettings
from napari_gsvolume.super_resolution.settings import TrainSRSettings

Run = Callable[..., tuple[int, str, str]]

QUICK = ("--gaussians", "40", "--iterations", "4")
AFFINE = [[3, 0, 0.2, -7], [0, 2, 0, 5], [0.1, 0, -1, 0.5], [0, 0, 0, 1]]


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return anatomical_phantom(20)[0][2:, 1:].round().astype(np.float32)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, volume: np.ndarray) -> Path:
    """A folder of inputs, good and bad."""
    folder = tmp_path_factory.mktemp("inputs")
    grid = Grid(volume.shape, AFFINE, ("micrometer",) * 3)
    write_nifti(folder / "good.nii.gz", volume, grid)
    nib.Nifti1Image(volume.astype(np.int16).T, np.eye(4)).to_filename(folder / "int16.nii")
    write_nifti(folder / "4d.nii.gz", np.stack([volume, volume[::-1]]), grid)
    write_nifti(folder / "constant.nii.gz", np.full_like(volume, 7), grid)
    holes = volume.copy()
    holes[3:6, 4, 5] = np.nan
    write_nifti(folder / "nan.nii.gz", holes, grid)
    colours = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(colours, np.eye(4)).to_filename(folder / "rgb.nii")
    (folder / "cut.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes()[:-3000])
    (folder / "cut.nii").write_bytes((folder / "int16.nii").read_bytes()[:-3000])
    (folder / "foreign.nii.gz").write_text("This is no image.")
    (folder / "foreign.safetensors").write_text("These are no Gaussians.")
    return folder


@pytest.fixture
def model(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    assert run("fit", "good.nii.gz", *QUICK, "--out", path)[0] == 0
    return path


def test_fit_writes_what_the_contract_says(run: Run, inputs: Path, tmp_path: Path, volume: np.ndarray) -> None:
    files = [tmp_path / name for name in ("M.safetensors", "R.nii.gz", "D.nii", "REP.json")]
    options = zip(("--out", "--reconstruction", "--residual", "--report"), files, strict=True)
    code, out, err = run("fit", "good.nii.gz", *QUICK, *(word for pair in options for word in pair))
    assert (code, err) == (0, "")
    assert all(str(path) in out for path in files)

    report = json.loads(files[3].read_text())
    assert {"psnr_db", "ssim", "n_gaussians", "seconds", "solver", "history"} <= set(report)
    assert set(report["history"][-1]) == {"seconds", "psnr_db", "n_gaussians", "terms"}
    assert report["solver"] == "gauss-newton"
    model = GaussianVolume.load(files[0])
    assert len(model) == report["n_gaussians"] <= 40

    source, reconstruction, residual = (nib.load(path) for path in (inputs / "good.nii.gz", *files[1:3]))
    for image in (reconstruction, residual):
        assert image.get_data_dtype() == np.float32
        assert image.shape == source.shape
        assert image.header.get_xyzt_units() == source.header.get_xyzt_units()
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-6)
    values = np.asarray(reconstruction.dataobj).T
    np.testing.assert_array_equal(np.asarray(residual.dataobj).T, volume - values)
    np.testing.assert_allclose(values, model.sample(), atol=1e-3 * np.ptp(volume))
    psnr = 20 * np.log10(np.ptp(volume) / np.sqrt(np.mean((volume - values.astype(float)) ** 2)))
    assert report["psnr_db"] == pytest.approx(psnr, abs=0.01)


@pytest.mark.parametrize("solver", ["gauss-newton", "adam", "sgd"])
def test_json_is_all_there_is_on_stdout(run: Run, solver: str) -> None:
    code, out, err = run("fit", "int16.nii", *QUICK, "--solver", solver, "--seed", 3, "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["solver"] == solver
    assert report["settings"]["seed"] == 3


def test_integers_leave_a_float_residual(run: Run, tmp_path: Path, volume: np.ndarray) -> None:
    assert run("fit", "int16.nii", *QUICK, "--residual", tmp_path / "D.nii", "--quiet") == (0, "", "")
    assert read_nifti(tmp_path / "D.nii").data.std() < volume.std()


def test_other_limits_end_a_fit(run: Run) -> None:
    _, out, _ = run("fit", "good.nii.gz", "--target-psnr", 12, "--json")
    assert json.loads(out)["psnr_db"] >= 12
    _, out, _ = run("fit", "good.nii.gz", "--time-limit", 0.5, "--json")
    assert json.loads(out)["seconds"] < 5


def test_nan_is_noted_and_stays(run: Run, inputs: Path, tmp_path: Path) -> None:
    files = tmp_path / "R.nii", tmp_path / "D.nii"
    code, out, err = run("fit", "nan.nii.gz", *QUICK, "--reconstruction", files[0], "--residual", files[1], "--json")
    assert code == 0
    assert err.count("\n") == 1
    assert "3 voxels are NaN" in err
    assert json.loads(out)["notes"]
    source, reconstruction, residual = (read_nifti(path).data for path in (inputs / "nan.nii.gz", *files))
    assert np.isfinite(reconstruction).all()
    np.testing.assert_array_equal(residual, source - reconstruction)
    assert np.isnan(residual).sum() == 3


def test_one_time_point_of_many(run: Run, tmp_path: Path, volume: np.ndarray) -> None:
    files = tmp_path / "R.nii", tmp_path / "D.nii"
    options = ("--reconstruction", files[0], "--residual", files[1], "--time-point", 1)
    assert run("fit", "4d.nii.gz", *QUICK, *options)[0] == 0
    reconstruction, residual = (read_nifti(path) for path in files)
    np.testing.assert_allclose(reconstruction.data + residual.data, volume[::-1], atol=1e-3)
    np.testing.assert_allclose(reconstruction.grid.affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("fit missing.nii.gz", "No such file"),
        ("fit cut.nii.gz", "cut short"),
        ("fit cut.nii", "cut short"),
        ("fit foreign.nii.gz", "not a NIfTI file"),
        ("fit foreign.safetensors", "not a NIfTI file"),
        ("fit constant.nii.gz", "constant"),
        ("fit 4d.nii.gz", "--time-point 0 to 1"),
        ("fit 4d.nii.gz --time-point 2", "--time-point 0 to 1"),
        ("fit good.nii.gz --time-point 0", "no time axis"),
        ("fit rgb.nii", "colours"),
        ("fit good.nii.gz --gaussians 1000000", "voxels"),
        ("fit good.nii.gz --gaussians 0", "--gaussians: "),
        ("fit good.nii.gz --gaussians many", "--gaussians"),
        ("fit good.nii.gz --time-limit -1", "--time-limit: "),
        ("fit good.nii.gz --target-psnr nan", "--target-psnr: "),
        ("fit good.nii.gz --solver newton", "--solver"),
        ("fit good.nii.gz --gausians 10", "--gausians"),
        ("fit good.nii.gz --out M.npz", ".gsv"),
        ("fit good.nii.gz --reconstruction R.mha", ".nii or .nii.gz"),
        ("fit good.nii.gz --report REP.txt", ".json"),
        ("fit good.nii.gz --out nowhere/M.safetensors", "No such file"),
        ("fit good.nii.gz --residual good.nii.gz", "--residual good.nii.gz"),
        ("fit good.nii.gz --residual X.nii --reconstruction X.nii", "X.nii"),
        ("fit", "IN.nii.gz"),
        ("sample foreign.safetensors --out UP.nii.gz", "foreign.safetensors"),
        ("sample missing.safetensors --out UP.nii.gz", "No such file"),
        ("info foreign.safetensors", "foreign.safetensors"),
        ("demo --no-window --png picture.pdf", ".png"),
        ("demo --no-window --size 3", "at least 16"),
        ("paint", "paint"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run: Run, inputs: Path, words: str, hint: str) -> None:
    before = {path: path.read_bytes() for path in inputs.iterdir()}
    code, out, err = run(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("gsvolume: ")
    assert err.count("\n") == 1
    assert hint in err
    assert {path: path.read_bytes() for path in inputs.iterdir()} == before


def test_folder_that_cannot_be_written_to(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(0o500)
    if os.access(folder, os.W_OK):  # for root, modes do not count
        folder = Path("/sys")
    if not folder.is_dir():
        pytest.skip("no folder that this user cannot write to")
    code, _, err = run("fit", "good.nii.gz", "--out", folder / "M.safetensors")
    assert code == 2
    assert err.count("\n") == 1
    assert "cannot be written to" in err


def test_sample(run: Run, model: Path, tmp_path: Path) -> None:
    gaussians, out = GaussianVolume.load(model), tmp_path / "UP.nii.gz"
    for scale, factors in (("2", 2), ("1,2,0.5", (1, 2, 0.5))):
        assert run("sample", model, "--scale", scale, "--out", out)[0] == 0
        image, grid = read_nifti(out), gaussians.grid.resampled(factors)
        assert image.data.dtype == np.float32
        assert (image.grid.shape, image.grid.units) == (grid.shape, ("micrometer",) * 3)
        np.testing.assert_allclose(image.grid.affine, grid.affine, atol=1e-6)
        np.testing.assert_array_equal(image.data, gaussians.sample(grid))


def test_sample_like_another_image(run: Run, model: Path, tmp_path: Path) -> None:
    gaussians, other, out = GaussianVolume.load(model), tmp_path / "other.nii", tmp_path / "UP.nii"
    grid = Grid((7, 8, 9), np.diag([5, 4, 3, 1]), ("micrometer",) * 3)
    write_nifti(other, np.zeros(grid.shape), grid)
    assert run("sample", model, "--like", other, "--out", out)[0] == 0
    np.testing.assert_array_equal(read_nifti(out).data, gaussians.sample(grid))
    write_nifti(other, np.zeros(grid.shape), Grid(grid.shape, grid.affine, ("mm",) * 3))
    assert "measures in mm" in run("sample", model, "--like", other, "--out", out)[2]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--scale 5000", "GiB"),
        ("--scale 1,2", "3 separated by commas"),
        ("--scale two", "--scale two"),
        ("--scale 0", "positive"),
        ("--scale 2 --like good.nii.gz", "not both"),
    ],
)
def test_sample_refuses(run: Run, model: Path, tmp_path: Path, words: str, hint: str) -> None:
    code, _, err = run("sample", model, *words.split(), "--out", tmp_path / "UP.nii")
    assert code == 2
    assert hint in err
    assert err.count("\n") == 1


def test_info(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "M.safetensors"
    grid = Grid((8, 9, 10), np.diag([2, 1, 1, 1]), ("mm",) * 3)
    factors = np.diag([1 / 2, 1 / 3, 1 / 4])[None]
    GaussianVolume(np.zeros((1, 3)), factors, [-5.0], grid, 7.5, {"settings": {"seed": 4}}).save(path)
    code, out, err = run("info", path, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["n_gaussians"], facts["shape"], facts["background"]) == (1, [8, 9, 10], 7.5)
    assert (facts["voxel_size"], facts["units"], facts["weights"]) == ([2, 1, 1], ["mm"] * 3, [-5, -5])
    assert [facts["scales_voxels"][p] for p in ("p0", "p50", "p100")] == pytest.approx([2, 3, 4])
    assert [facts["scales_world"][p] for p in ("p0", "p50", "p100")] == pytest.approx([3, 4, 4])
    assert facts["bytes_per_gaussian"] == facts["bytes"] == path.stat().st_size
    assert facts["ratio"] == 4 * 8 * 9 * 10 / facts["bytes"]
    code, out, _ = run("info", path)
    assert code == 0
    assert "seed 4" in out


def test_info_of_no_gaussians(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "M.safetensors"
    GaussianVolume(np.zeros((0, 3)), np.zeros((0, 3, 3)), [], Grid((4, 4, 4))).save(path)
    assert run("info", path)[0] == 0


def test_demo_saves_a_picture(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "demo.png"
    options = ("--size", 24, "--gaussians", 50, "--time-limit", 1, "--png", path)
    code, out, _ = run("demo", "--no-window", *options)
    assert code == 0
    assert str(path) in out
    assert path.read_bytes().startswith(b"\x89PNG")


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"napari-gsvolume {__version__}\n", "")
    assert all(command in run()[1] for command in ("fit", "sample", "info", "demo", "Exit codes"))
    _, out, _ = run("fit", "--help")
    assert all(f"--{name.replace('_', '-')}" in out for name in FitSettings.model_fields)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_lists_commands_in_sections_with_whole_summaries(
    run: Run, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = run("--help")
    places = [out.index(f"\n{title}:\n") for title in COMMAND_SECTIONS]
    assert places == sorted(places)
    assert "\u2026" not in out
    assert "..." not in out.replace("[ARGS]...", "")
    assert max(map(len, out.splitlines())) <= min(columns, 100)
    words = " ".join(out.split())
    for name, command in get_command(app).commands.items():
        summary = " ".join(command.callback.__doc__.partition("\n\n")[0].split())
        assert f"{name} {summary}" in words


@pytest.mark.parametrize("command", ["fit", "train-sr", "train-views"])
def test_settings_are_listed_in_sections(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(command, "--help")
    sections = re.split(r"^(\S.*):$", out, flags=re.MULTILINE)
    rows = {title: re.findall(r"^  --([a-z0-9-]+)", text, re.MULTILINE) for title, text in pairs(sections[1:])}
    model = {"fit": FitSettings, "train-sr": TrainSRSettings, "train-views": SplatTrainingSettings}[command]
    expected: dict[str, set[str]] = {}
    for name, field in model.model_fields.items():
        expected.setdefault(field.json_schema_extra["panel"], set()).add(name.replace("_", "-"))
    assert {title: set(rows[title]) for title in expected} == expected
    assert {"out", "report", "help"} <= set(rows["Options"])
    assert "[default: " in out  # square brackets are text, not markup


def pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


def completed(shell_words: str, **environment: str) -> list[str]:
    code = "import sys; from napari_gsvolume.cli import main; sys.exit(main())"
    asked = {"COMP_WORDS": shell_words, "COMP_CWORD": str(len(shell_words.split()) - 1)}
    asked["_GSVOLUME_COMPLETE"] = "complete_bash"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked | environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_completion_of_commands_options_and_choices() -> None:
    assert completed("gsvolume tr") == ["train-views", "train-sr", "track"]
    assert "--time-limit" in completed("gsvolume fit --ti")
    assert completed("gsvolume fit --solver g") == ["gauss-newton"]
    script = "\n".join(completed("", _GSVOLUME_COMPLETE="source_bash"))
    assert "complete -o default -F _gsvolume_completion gsvolume" in script


def test_completion_can_be_shown_and_installed(run: Run) -> None:
    _, out, _ = run("--help")
    assert "--install-completion" in out
    assert "--show-completion" in out


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from napari_gsvolume.cli import main
main(["fit", "--help"])
sys.exit(" ".join({"torch", "numba", "nibabel", "napari", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_fit_keeps_its_result(inputs: Path, tmp_path: Path, number: int) -> None:
    code = """
import sys
import napari_gsvolume.fitting as fitting
from napari_gsvolume.progress import mapped
from napari_gsvolume.cli import main
all_steps = fitting.fit_steps
def announce(step):
    if step.iteration == 2:
        print("ready", flush=True)
    return step
def fit_steps(*args, **options):
    return mapped(all_steps(*args, **options), announce)
fitting.fit_steps = fit_steps
sys.exit(main())
"""
    out, report = tmp_path / "M.safetensors", tmp_path / "REP.json"
    options = ["--time-limit", "50", "--out", str(out), "--report", str(report)]
    command = [sys.executable, "-c", code, "fit", str(inputs / "good.nii.gz"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "Stopped" in said
    assert len(GaussianVolume.load(out)) > 0
    assert json.loads(report.read_text())["seconds"] < 40


def test_the_second_signal_aborts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop()  # nothing to keep yet
        stop.begun = True
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("a bug"), 1), (MemoryError(), 2)]
)
def test_exit_codes(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fails(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(napari_gsvolume.fitting, "fit_steps", fails)
    found, out, err = run("fit", "good.nii.gz")
    assert (found, out) == (code, "")
    assert err.count("\n") == 1
    if code == 1:
        assert "RuntimeError" in err
        monkeypatch.setenv("GSVOLUME_DEBUG", "1")
        assert "Traceback" in run("fit", "good.nii.gz")[2]


def test_a_file_of_a_given_size(run: Run, tmp_path: Path, volume: np.ndarray) -> None:
    small, report, sampled = tmp_path / "M.gsv", tmp_path / "R.json", tmp_path / "Y.nii.gz"
    options = ("--ratio", 40, "--iterations", 12, "--out", small, "--report", report)
    assert run("fit", "good.nii.gz", *options, "--quiet") == (0, "", "")
    figures = json.loads(report.read_text())
    assert figures["bytes"] == small.stat().st_size <= 4 * volume.size / 40
    assert figures["ratio"] == pytest.approx(4 * volume.size / figures["bytes"])
    assert set(figures["terms"]) == {"data"}
    assert run("sample", small, "--out", sampled)[0] == 0
    decoded = read_nifti(sampled).data.astype(float)
    psnr = 20 * np.log10(np.ptp(volume) / np.sqrt(((decoded - volume) ** 2).mean()))
    assert figures["psnr_db"] == pytest.approx(psnr, abs=0.01)


def test_convert(run: Run, model: Path, tmp_path: Path) -> None:
    names = ("a.gsv", "b.safetensors", "c.gsv", "d.ply")
    before = model
    for name in names:
        code, out, err = run("convert", before, tmp_path / name)
        assert (code, err) == (0, "")
        assert name in out
        before = tmp_path / name
    assert (tmp_path / "a.gsv").read_bytes() == (tmp_path / "c.gsv").read_bytes()
    code, _, err = run("convert", tmp_path / "d.ply", tmp_path / "e.gsv")
    assert code == 2
    assert err.count("\n") == 1
    code, _, err = run("convert", model, tmp_path / "e.obj")
    assert code == 2
    assert ".ply" in err


def test_ablate_writes_table_page_and_plot(run: Run, tmp_path: Path) -> None:
    stem = tmp_path / "study"
    options = ("--study", "support", "--gaussians", 15, "--iterations", 3, "--out", stem)
    code, out, err = run("ablate", "good.nii.gz", *options)
    assert (code, err) == (0, "")
    assert (tmp_path / "study.csv").read_text().count("\n") == 6
    assert "| ellipsoid, normalised |" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "study.md").read_text() in out
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("ablate", "good.nii.gz", "--study", "colour")
    assert code == 2
    assert err.count("\n") == 1
