"""Odd inputs for the readers of graphs. As a script: reads each in a process of its own and prints what it took: the
source, how it ended, CPU seconds, and megabytes above those of the imports."""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.errors import NextscaleError
from nextscale_graph.config import GraphDataConfig
from nextscale_graph.data import open_graphs

ENTITIES = b"".join(b"<!ENTITY e%d '%s'>" % (i, b"&e%d;" % (i - 1) * 12) for i in range(1, 11))
BOMB = b"<!DOCTYPE g [<!ENTITY e0 'boom'>" + ENTITIES + b"]><graphml><graph><node id='&e10;'/></graph></graphml>"
QUADRATIC = b"<!DOCTYPE g [<!ENTITY e '" + b"a" * 10**5 + b"'>]><graphml><desc>" + b"&e;" * 10**4 + b"</desc></graphml>"
OUTSIDE = b"<!DOCTYPE g [<!ENTITY e SYSTEM 'file:///etc/hostname'>]><graphml><desc>&e;</desc></graphml>"
XML = b"<graphml><graph edgedefault='undirected'>%s</graph></graphml>"

FILES: dict[str, bytes] = {
    "nothing.txt": b"",
    "blank.csv": b"\n \n\t\n",
    "zeros.edgelist": bytes(4096),
    "noise.txt": np.random.default_rng(0).bytes(5000),
    "noise.graphml": np.random.default_rng(1).bytes(5000),
    "noise.gml": np.random.default_rng(2).bytes(5000),
    "noise.mtx": b"%%MatrixMarket " + np.random.default_rng(3).bytes(500),
    "utf32.txt": "a b\n".encode("utf-32"),
    "half-utf16.txt": "a b\n".encode("utf-16")[:-1],
    "latin.txt": "å b\n".encode("latin-1"),
    "one-word.txt": b"word\n",
    "one-long-line.txt": b"a " * 2 * 10**6,
    "one-long-word.txt": b"x" * 10**7,
    "many-columns.csv": b"1," * 10**6 + b"2\n",
    "many-nodes.txt": b"".join(b"%d %d\n" % (i, i + 1) for i in range(100_001)),
    "many-lines.txt": b"1 2\n" * 3 * 10**6,
    "open-quote.csv": b'"a,b\nc,d\n' * 10**4,
    "quotes.txt": b'"' * 10**6,
    "hashes.txt": b"a#" * 10**5,
    "braces.txt": b"{" * 10**6,
    "huge-number.txt": b"1 " + b"9" * 10**5 + b"\n" + b"1 0" + b"9" * 10**5 + b"\n",
    "huge-float.txt": b"1e+999999999 2\n",
    "tabs.tsv": b"\t" * 10**6 + b"a\n",
    "loops.txt": b"1 1\n",
    "both-ways.txt": b"1 2\n2 1\n",
    "nodes.col": b"p edge 999999999999 1\ne 1 2\n",
    "negative.col": b"p edge 2 1\ne -1 2\n",
    "letters.col": b"p edge 2 1\ne a b\n",
    "digits.net": "*Vertices 2\n*Edges\n² 1\n".encode(),
    "nodes.net": b"*Vertices 99999999999999999999999\n",
    "no-number.net": b"*Vertices\n1 2\n",
    "matrix.net": b"*Vertices 2\n*Matrix\n0 1\n1 0\n",
    "size.mtx": b"%%MatrixMarket matrix coordinate pattern symmetric\n999999999999 999999999999 1\n2 1\n",
    "entries.mtx": b"%%MatrixMarket matrix coordinate pattern symmetric\n9 9 999999999999\n2 1\n",
    "outside.mtx": b"%%MatrixMarket matrix coordinate pattern symmetric\n2 2 1\n9 1\n",
    "wide.mtx": b"%%MatrixMarket matrix coordinate pattern general\n2 3 1\n1 3\n",
    "dense.mtx": b"%%MatrixMarket matrix array real general\n9999999 9999999\n1\n",
    "entities.graphml": BOMB,
    "quadratic.graphml": QUADRATIC,
    "outside.graphml": OUTSIDE,
    "empty.graphml": b"<graphml/>",
    "cut.graphml": XML[:40],
    "directed.graphml": XML.replace(b"undirected", b"directed") % b"<node id='a'/>",
    "hyper.graphml": XML % b"<hyperedge/>",
    "ghost.graphml": XML % b"<node id='a'/><edge source='a' target='b'/>",
    "twins.graphml": XML % b"<node id='a'/><node id='a'/>",
    "multi.graphml": XML % (b"<node id='a'/><node id='b'/>" + b"<edge source='a' target='b'/>" * 2),
    "nested.graphml": b"<graphml>" + b"<node>" * 10**5,
    "no-key.graphml": XML % b"<node id='a'><data key='k'>1</data></node>",
    "many.graphml": b"<graphml>" + b"<node/>" * 10**6,
    "cut.gml": b"graph [ node [ id 1 ",
    "deep.gml": b"graph [ " + b"a [ " * 10**4,
    "no-id.gml": b'graph [ node [ label "a" ] ]',
    "ghost.gml": b"graph [ node [ id 1 ] edge [ source 1 target 2 ] ]",
    "many.gml": b"graph [ " + b"node [ ] " * 10**6,
}
SMILES: dict[str, bytes] = {
    "nothing.smi": b"",
    "noise.smi": np.random.default_rng(4).bytes(5000),
    "zeros.smi": bytes(4096),
    "latin.smi": "CC é".encode("latin-1"),
    "long.smi": b"C" * 10**7,
    "brackets.smi": b"C(" * 4000 + b"\n",
    "rings.smi": b"C1" * 4000 + b"\n",
    "charge.smi": b"[C+999999999]\n",
    "mass.smi": b"[999999999C]\n",
    "element.smi": b"[Zz]\n",
    "query.smi": b"[#6;R]~[!C]\n",
}


def npz(**changes: Any) -> bytes:
    arrays = {
        "num_nodes": np.full(20, 3),
        "edges": np.tile([[0, 1], [1, 2]], (20, 1)),
        "edge_offsets": np.arange(21) * 2,
    }
    file = io.BytesIO()
    np.savez_compressed(file, **(arrays | changes))  # type: ignore[arg-type]
    return file.getvalue()


def announcing(shape: str, dtype: str = "<i8") -> bytes:
    """An .npz whose edges announce a shape without having it."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    file = io.BytesIO(npz())
    with zipfile.ZipFile(file) as archive:
        rest = {name: archive.read(name) for name in archive.namelist() if name != "edges.npy"}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in rest.items():
            archive.writestr(name, content)
        archive.writestr("edges.npy", b"\x93NUMPY\x01\x00\x76\x00" + header.encode())
    return made.getvalue()


ARRAYS: dict[str, Callable[[], bytes]] = {
    "nothing.npz": bytes,
    "noise.npz": lambda: np.random.default_rng(5).bytes(5000),
    "cut.npz": lambda: npz()[:-60],
    "large.npz": lambda: announcing("(99999999999, 2)"),
    "negative.npz": lambda: announcing("(-1, 2)"),
    "strange.npz": lambda: announcing("(2, 2)", "|O"),
    "nodes.npz": lambda: npz(num_nodes=np.full(20, 10**9)),
    "overflow.npz": lambda: npz(num_nodes=np.full(20, 2**62)),
    "unsigned.npz": lambda: npz(edges=np.full((40, 2), 2**64 - 1, np.uint64)),
    "graphs.npz": lambda: npz(num_nodes=np.ones(6 * 10**6, np.uint8), edge_offsets=np.zeros(6 * 10**6 + 1, np.uint8)),
    "packed.npz": lambda: npz(edges=np.zeros((10**7, 2), np.int8)),
    "objects.npz": lambda: npz(split=np.array([{}] * 20, dtype=object)),
    "dates.npz": lambda: npz(edges=np.zeros((40, 2), "datetime64[s]")),
    "infinite.npz": lambda: npz(edge_offsets=np.full(21, np.inf)),
    "types.npz": lambda: npz(node_types=np.full(60, 2**40)),
}
SOURCES = ["", " ", "planra", "pyg:", "pyg:../up", "pyg:/etc", "pyg:PLanetoid/Cora", "pyg:QM9/x", "pyg:Planetoid/",
           "~nobody-here/x", "a\0b", "x" * 5000, "/dev/null", "/dev/zero", "/proc/self/mem"]  # fmt: skip


def make(folder: Path) -> list[str]:
    """Write every odd input below ``folder``, and return the sources to open."""
    found = list(SOURCES)
    for name, content in FILES.items():
        own = folder / name.replace(".", "-")
        own.mkdir(parents=True)
        (own / name).write_bytes(content)
        found.append(str(own))
    for name, content in (SMILES | {name: write() for name, write in ARRAYS.items()}).items():
        (folder / name).write_bytes(content)
        found.append(str(folder / name))
    for kind in ("pipe", "folder", "dangling", "round"):
        (folder / kind).mkdir()
    os.mkfifo(folder / "pipe" / "a.txt")
    os.mkfifo(folder / "pipe.npz")
    (folder / "folder" / "a.txt").mkdir()
    (folder / "dangling" / "a.txt").symlink_to(folder / "nowhere")
    (folder / "round" / "a").symlink_to(folder / "round")
    return [*found, *(str(folder / kind) for kind in ("pipe", "pipe.npz", "folder", "dangling", "round"))]


def attempt(source: str, root: Path) -> str:
    """What opening a source ends with: the message of a ``NextscaleError``, or something else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            open_graphs(GraphDataConfig(source=source, root=str(root)))
        except NextscaleError as error:
            return str(error)
        except BaseException as error:
            return f"FOREIGN {type(error).__name__}: {error}"
    return "ACCEPTED"


def main(folder: Path) -> None:
    for source in make(folder):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            message = attempt(source, folder / "root")
            taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(json.dumps([source[-60:], message[:200], time.process_time() - start, taken / 1000]), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
