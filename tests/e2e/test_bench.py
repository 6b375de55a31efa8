"""bench/compare with stand-ins for the programs it times: what it makes of their figures, and of a peer that fails."""
import csv
import importlib.machinery
import importlib.util
import pathlib
import sys

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench"

# A worker, or the binary: its speed and load time grow from call to call, so that rounds differ.
PROGRAM = """#!%s
import json, pathlib
calls = pathlib.Path(__file__ + ".calls")
n = len(calls.read_text()) + 1 if calls.exists() else 1
calls.write_text("x" * n)
for depth in (0, 512):
    print(json.dumps({"prefill": 512, "depth": depth, "prefill_tps": %d * n, "decode_tps": 10.0, "peak_rss_bytes": 4e6,
                      "load_seconds": 1.5, "weight_bytes": 2e6, "read_gbps": 40, "int8_gmacs": 1000}))
"""
BROKEN = """import pathlib, sys
with open(__file__ + ".calls", "a") as calls:
    calls.write("x")
sys.exit("first line\\nno such layer")
"""


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """The module, its peers replaced: one works, one's program fails, one's files cannot be written."""
    monkeypatch.syspath_prepend(str(BENCH))
    loader = importlib.machinery.SourceFileLoader("compare", str(BENCH / "compare"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("compare", loader))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)

    def write(name, path, *_):
        path.mkdir()

    def refuse(name, path, bits):
        raise ValueError("%s has %d bits" % (name, bits))

    for name, text in (("binary", PROGRAM % (sys.executable, 300)), ("works", PROGRAM % (sys.executable, 100)),
                       ("breaks", BROKEN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(module.shapes, "write_mlx", write)
    monkeypatch.setattr(module, "PEERS", {"int8": module.PEERS["int8"],
                                          "works": module.Peer(str(tmp_path / "works"), ".a", write),
                                          "breaks": module.Peer(str(tmp_path / "breaks"), ".b", write),
                                          "refuses": module.Peer(str(tmp_path / "works"), ".c", refuse)})
    return module


def run(module, monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare", "--shapes", "qwen3-0.6b:8@0+512", "--binary", str(tmp_path / "binary"),
                                      "--files", str(tmp_path / "files"), *arguments])
    module.main()


def test_peers_side_by_side(compare, monkeypatch, tmp_path, capsys):
    run(compare, monkeypatch, tmp_path, "--peers", "works,breaks,refuses", "--rounds", "3",
        "--csv", str(tmp_path / "csv"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "qwen3-0.6b, 8-bit"
    assert lines[3].split() == ["mlx-serve", "works", "ratio"]
    assert lines[4].split() == ["prefill", "512", "600.00", "200.00", "3.00", "(3.00", "to", "3.00)"]
    assert "  breaks has no figures: no such layer" in lines
    assert "  refuses has no figures: ValueError: qwen3-0.6b has 8 bits" in lines
    assert (tmp_path / "breaks.calls").read_text() == "x"  # not tried in every round
    rows = list(csv.reader(open(tmp_path / "csv")))
    assert rows[0] == ["shape", "bits", "measure", "round", "mlx_serve", "works", "breaks", "refuses"]
    assert ["qwen3-0.6b", "8", "prefill 512", "2", "600", "200", "", ""] in rows
    assert ["qwen3-0.6b", "8", "load s", "3", "1.5", "1.5", "", ""] in rows
    assert len(rows) == 1 + 3 * 6


def test_files_are_written_once(compare, monkeypatch, tmp_path):
    run(compare, monkeypatch, tmp_path, "--peers", "works", "--rounds", "1")
    assert sorted(p.name for p in (tmp_path / "files").iterdir()) == ["qwen3-0.6b-8", "qwen3-0.6b-8.a"]
    run(compare, monkeypatch, tmp_path, "--peers", "works", "--rounds", "1")  # mkdir would fail


def test_a_precision_as_a_peer(compare, monkeypatch, tmp_path, capsys):
    (tmp_path / "binary").write_text((tmp_path / "binary").read_text().replace(
        "300 * n", "300 * (2 if __import__('sys').argv[-2:] == ['--precision', 'int8'] else 1)"))
    run(compare, monkeypatch, tmp_path, "--peers", "int8", "--rounds", "1")
    assert capsys.readouterr().out.splitlines()[4].split()[:5] == ["prefill", "512", "300.00", "600.00", "0.50"]


def test_own_failure_ends_the_run(compare, monkeypatch, tmp_path):
    (tmp_path / "binary").write_text("#!%s\n%s" % (sys.executable, BROKEN))
    with pytest.raises(SystemExit, match="no such layer"):
        run(compare, monkeypatch, tmp_path, "--peers", "works", "--rounds", "1")


def test_unknown_peer(compare, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as failure:
        run(compare, monkeypatch, tmp_path, "--peers", "works,vapour")
    assert failure.value.code == 2
    assert "expected some of int8, works, breaks, refuses" in capsys.readouterr().err
