"""Tuning for a GPU, which the driver of fake_cuda.c stands for: it runs the candidates' source."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import intformer
from intformer.backends.cuda.device import Device
from intformer.backends.targets import TARGETS
from intformer.errors import IntformerError
from intformer.frontend import import_model
from intformer.tuning import records
from intformer.tuning.driver import tune
from intformer.tuning.tasks import tasks
from intformer_testing import cuda_compilers, emulated_builds, fake_cuda, gpu, random_hf, rpc

SUPPORT = Path(gpu.__file__).parents[1]
SERVER = [sys.executable, "-m", "intformer", "rpc-server", "--tracker"]
JOB = """
import json, sys
from dataclasses import asdict
from intformer_testing import emulated_builds
from intformer.tuning.driver import tune
report = tune(sys.argv[1], target="t4", trials=14, out=sys.argv[2], tokens=(20,), timeout=900,
              jobs=1, build=emulated_builds.wrong_sums,
              **dict(zip(("rpc", "rpc_key"), sys.argv[3:])))
print(json.dumps(asdict(report)))
"""
FAULTS = """
import sys
from pathlib import Path
from intformer_testing import emulated_builds
from intformer.backends.targets import TARGETS
from intformer.tuning.build import Builder
from intformer.tuning.remote import Remote
from intformer.tuning.runner import Runner
from intformer.tuning.tasks import model_of, tasks
from intformer.tuning.ways import ON_DEVICE
folder = Path(sys.argv[2])
task = next(t for t in tasks([model_of(sys.argv[1])], TARGETS["t4"], (8,)) if "layern" in t.title)
task.kernels.case(task.kernel, task.rows).save(folder / "case.npz")
remote = Remote.parse(*sys.argv[3:]) if sys.argv[3:] else None
runner = Runner(lambda identity: folder / "case.npz", 1, 300, remote, ON_DEVICE)
((right, _),) = Builder("t4", folder, 1, 300, emulated_builds.right).libraries(
    [(task.form, task.rows, task.default)]
)
right = right.partition("#")[0]
bad = []
for name in ("wild", "crash"):
    bad.append(folder / f"{name}.gpu")
    library = (folder / f"{name}.so").read_bytes()
    bad[-1].write_bytes(Path(right).read_bytes().partition(b"\\n")[0] + b"\\n" + library)
for path in (right, bad[0], right, bad[1], right):
    seconds, error = runner.measure(str(path), "case")
    print(error or min(seconds) > 0)
print(runner.race([right, str(bad[0])], "case"))
print([len(times) for times in runner.race([right, right], "case")])
"""
WILD = """
const int emulate_kernel_v0_params = 1;
void emulate_kernel_v0(const unsigned grid[3], unsigned threads, void **params) {
  ((char *)*(void **)params[0])[-1] = 1;
}
"""
CRASH = """
#include <stdlib.h>
const int emulate_kernel_v0_params = 1;
void emulate_kernel_v0(const unsigned grid[3], unsigned threads, void **params) { abort(); }
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_hf.save(folder, "bert", "features", hidden=64, ffn=96)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a process that has the fake driver, and its child processes."""
    env = fake_cuda.environment(fake_cuda.build(tmp_path_factory.mktemp("driver")))
    return {**env, "PYTHONPATH": str(SUPPORT)}


@pytest.fixture(scope="module")
def tuned(source, environment, tmp_path_factory):
    """Return (folder of the logs, report as JSON) of a small job."""
    cuda_compilers.any_compiler()
    out = tmp_path_factory.mktemp("tuned")
    return out, json.loads(run(JOB, source, out, environment))


@pytest.fixture(scope="module")
def behind_rpc(environment, tmp_path_factory):
    """The arguments that reach a machine with the fake driver; this process has none."""
    pytest.importorskip("tornado", reason="TVM's RPC needs tornado, which is not installed")
    with rpc.tracker(9390) as address:
        command = [*SERVER, address, "--key", "fake", "--host", rpc.HOST, "--port", "9490"]
        server = subprocess.Popen(command, env=environment)
        try:
            rpc.wait_for(address, "fake")
            yield address, "fake"
        finally:
            server.kill()  # its own processes end with it
            server.wait()
        rpc.wait_for(address, "fake", there=False)


def run(code, source, folder, environment, *rpc):
    command = [sys.executable, "-c", code, str(source), str(folder), *rpc]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@gpu.needs_compiler
def test_right_candidates_are_measured_and_wrong_ones_refused(tuned, source):
    out, report = tuned
    found = records.read_database(out / "measured" / "t4")
    assert len(found) == len(set(found)) == report["trials"] == 14
    wrong = [r for r in found if r.seconds > records.FAILED]
    assert report["failures"] == {"wrong result": len(wrong)} and wrong
    assert all(dict(r.decisions) != emulated_builds.RIGHT for r in wrong)
    kept = records.read_database(out / "t4")
    assert {r.seconds < 10 for r in kept} == {True}
    assert not {(r.form, r.decisions) for r in kept} & {(r.form, r.decisions) for r in wrong}
    assert len(report["lines"]) == len({r.form for r in found})
    (about,) = json.loads((out / "t4" / "provenance.json").read_text())["runs"]
    assert about["gpu"] == "Fake 70" and about["cuda"]


@gpu.needs_compiler
def test_the_logs_compile(tuned, source, tmp_path):
    model = import_model(source, calibrate=random_hf.sequences(seed=1), method="minmax")
    library = intformer.compile(model, tmp_path / "m.so", target="t4", tuning_logs=tuned[0])
    about = library.metadata["tuning"]["t4"]
    assert about["tuned"] == about["kernels"] == len(about["versions"])


@gpu.needs_compiler
def test_a_fault_of_a_candidate_ends_with_it(source, environment, tmp_path):
    """The driver serves a process no more after one."""
    right, fault, after, crash, *others = faults(source, tmp_path, environment)
    assert fault.startswith("not run: ") and fault.endswith("CUDA_ERROR_ILLEGAL_ADDRESS (700)")
    assert crash == "not run: Subprocess terminated"
    assert [right, after, *others] == ["True", "True", "True", "None", "[15, 15]"]


def faults(source, folder, environment, *rpc):
    for name, code in (("wild", WILD), ("crash", CRASH)):
        (folder / f"{name}.c").write_text(code)
        command = ["gcc", "-shared", "-fPIC", f"{name}.c", "-o", f"{name}.so"]
        subprocess.run(command, check=True, cwd=folder)
    return run(FAULTS, source, folder, environment, *rpc).splitlines()


def here():
    """The environment of a process that has no GPU."""
    return {**os.environ, "PYTHONPATH": str(SUPPORT)}


@gpu.needs_compiler
def test_candidates_are_measured_through_rpc(source, behind_rpc, tmp_path):
    cuda_compilers.any_compiler()
    report = json.loads(run(JOB, source, tmp_path, here(), *behind_rpc))
    assert report["trials"] == 14 and report["lines"]
    assert report["failures"].keys() == {"wrong result"}
    (about,) = json.loads((tmp_path / "t4" / "provenance.json").read_text())["runs"]
    assert (about["gpu"], about["cpu"]) == ("Fake 70", "behind RPC key 'fake'")


@pytest.mark.slow  # ten processes that import TVM
@gpu.needs_compiler
def test_a_server_outlives_faults_and_crashes(source, behind_rpc, tmp_path):
    right, fault, after, crash, *others = faults(source, tmp_path, here(), *behind_rpc)
    assert fault.startswith("not run: ") and "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in fault
    assert crash.startswith("not run: ")
    assert [right, after, *others] == ["True", "True", "True", "None", "[3, 3]"]


@gpu.needs_compiler
def test_a_server_of_tvm_alone_is_refused(source, tmp_path):
    cuda_compilers.any_compiler()
    pytest.importorskip("tornado", reason="TVM's RPC needs tornado, which is not installed")
    with rpc.tracker(9590) as address, rpc.server(address, "plain", 9690):
        with pytest.raises(IntformerError, match=r"'plain' has intformer nowhere; .*rpc-server"):
            tune(source, target="t4", trials=1, out=tmp_path, rpc=address, rpc_key="plain")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_serve_says_why():
    with rpc.tracker(9590) as address, socket.create_server((rpc.HOST, 0)) as silent:
        elsewhere = f"{rpc.HOST}:{silent.getsockname()[1]}"
        threading.Thread(target=hang_up, args=(silent,), daemon=True).start()
        for at, options, message in (
            ("nowhere", [], "'nowhere' is not HOST:PORT - --tracker"),
            ("127.0.0.1:9", [], "no tracker answers: "),
            ("a..b:9190", [], "no tracker answers: "),
            (address, ["--port", "70000"], "cannot listen: "),
            (address, ["--host", "192.0.2.1"], "cannot listen: "),
            (elsewhere, [], "the server ended - --tracker"),
        ):
            command = [*SERVER, at, "--key", "k", *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
            assert done.returncode == 1 and message in done.stderr.splitlines()[-1], done.stderr
            assert "Traceback" not in done.stderr


def test_a_server_ends_with_ctrl_c():
    with rpc.tracker(9590) as address:
        command = [*SERVER, address, "--key", "k", "--host", rpc.HOST, "--port", "9690"]
        # a shell that runs the suite behind has children ignore it
        command = ["env", "--default-signal=INT", *command]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        lines = iter(server.stderr.readline, "")
        assert any(line.startswith("serving k on port 9") for line in lines)
        rpc.wait_for(address, "k")
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
        rpc.wait_for(address, "k", there=False)


def hang_up(listening):
    """Accept and say what no tracker says."""
    while True:
        connection, _ = listening.accept()
        connection.sendall(b"HTTP/1.1 400")
        connection.close()


def test_the_default_follows_the_rows(source):
    model = import_model(source, calibrate=random_hf.sequences(seed=1), method="minmax")
    every = tasks([model], TARGETS["t4"], (8, 4096))
    tiles = {t.rows: t.default["tile"] for t in every if t.form.title == "dense 64x192"}
    assert tiles == {8: 3, 4096: 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "tuning for a GPU needs one: no NVIDIA driver"),
        ({"gpu": "9.0"}, "Fake 70 is sm_90, which does not run machine code for sm_75"),
    ],
)
def test_without_that_gpu_it_ends_at_once(source, environment, tmp_path, settings, message):
    cuda_compilers.any_compiler()
    out, env = tmp_path / "logs", with_settings(environment, settings, tmp_path)
    command = [sys.executable, "-m", "intformer", "tune", str(source), "--target", "t4"]
    command += ["--trials", "9", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout, out.exists()) == (1, "", False)
    (line,) = done.stderr.splitlines()
    assert message in line and " - --target t4 - " in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "no NVIDIA driver ("),
        ({"fail": "cuInit=100"}, "finds no GPU: cuInit: CUDA_ERROR_NO_DEVICE (100)"),
        ({"count": 0}, "no GPU is visible"),
    ],
)
def test_what_is_missing_is_said(environment, tmp_path, settings, message):
    code = "from intformer.backends.cuda.device import Device; Device()"
    env, command = with_settings(environment, settings, tmp_path), [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert "IntformerError: " in done.stderr and message in done.stderr.splitlines()[-1]


def with_settings(environment, settings, folder):
    """Return the environment with settings of the fake driver; None: no driver."""
    if settings is None:
        (folder / "libcuda.so.1").write_text("no library")  # found before a real one
        return {**environment, "LD_LIBRARY_PATH": str(folder)}
    return {**environment, **{f"FAKE_CUDA_{k.upper()}": str(v) for k, v in settings.items()}}


@pytest.mark.gpu
def test_on_a_real_gpu(source, tmp_path):
    cuda_compilers.any_compiler()
    try:
        device = Device()
    except IntformerError as error:
        pytest.skip(str(error))
    target = "cuda:sm_{}{}".format(*device.capability)
    if target not in TARGETS:
        pytest.skip(f"{device.name} is no target")
    report = tune(source, target=target, trials=40, out=tmp_path, tokens=(8, 150), timeout=300)
    assert not report.failures.get("wrong result") and report.trials >= 40
    assert all(0 < line.chosen < 0.01 for line in report.lines) and report.lines
    (about,) = json.loads((tmp_path / target / "provenance.json").read_text())["runs"]
    assert about["gpu"] == device.name
