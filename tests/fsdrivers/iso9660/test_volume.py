# SPDX-License-Identifier: Apache-2.0
"""Reading ISO 9660 volumes of foreign programs: to the same content as what they were made of."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
from pathlib import Path

import pycdlib
import pytest

from fsdrivers import open_volume as open_any
from fsdrivers import probe
from fsdrivers.device import FileDevice
from fsdrivers.errors import UnsupportedError
from fsdrivers.iso9660.check import check_volume
from fsdrivers.iso9660.descriptors import find_sessions
from fsdrivers.iso9660.volume import open_volume
from fsdrivers.registry import driver_of
from tests.fsdrivers.iso9660.images import facts_of, facts_of_tree, make_tree, paths_of
from tests.programs import run

pytestmark = pytest.mark.root  # owners of the tree that discs are made of
MIB = 1 << 20
GIB = 1 << 30

GENISOIMAGE = {
    "rock ridge": ["-R"],
    "joliet too": ["-R", "-J", "-joliet-long"],
    "no relocation": ["-R", "-D", "-l"],
    "level 4": ["-R", "-iso-level", "4"],
    "level 1": ["-R", "-iso-level", "1"],
    "padded, path table copies": ["-R", "-U", "-allow-leading-dots", "-pad"],
}
XORRISO = {
    "rock ridge 1.10": [],
    "joliet too": ["-joliet", "on"],
    "rock ridge 1.12": ["-compliance", "new_rr"],
    "hard links": ["-hardlinks", "on"],
    "relocation": ["-compliance", "deep_paths_off:long_paths_off"],
    "level 2": ["-compliance", "iso_9660_level=2:always_gmt_off:omit_version"],
    "enhanced": ["-compliance", "iso_9660_1999"],
    "attributes": ["-acl", "on", "-xattr", "any", "-md5", "on"],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("iso") / "tree")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image.iso"


def check_same(path: Path, tree: Path) -> None:
    """A volume holds what a tree does; the directory of relocated ones may be left over."""
    with FileDevice.open(path) as device:
        found = facts_of(open_volume(device))
        findings = check_volume(device)
    found.pop(b"rr_moved", None)
    found.pop(b"RR_MOVED", None)
    wanted = facts_of_tree(tree)
    assert found.keys() == wanted.keys()
    assert {
        path: (found[path], wanted[path]) for path in wanted if found[path] != wanted[path]
    } in (
        {},
        # genisoimage gives the root the time of mastering
        {b"": (found[b""], wanted[b""])},
    )
    assert [finding for finding in findings if finding.rule not in ("order", "path-table")] == []


@pytest.mark.tools
@pytest.mark.parametrize("options", GENISOIMAGE.values(), ids=GENISOIMAGE)
def test_genisoimage(tree: Path, image: Path, options: list[str]) -> None:
    """What genisoimage masters is read as the tree it was made of, and passes the checker."""
    run("genisoimage", "-quiet", *options, "-o", image, tree)
    check_same(image, tree)


@pytest.mark.tools
@pytest.mark.parametrize("options", XORRISO.values(), ids=XORRISO)
def test_xorriso(tree: Path, image: Path, options: list[str]) -> None:
    """What xorriso masters is read as the tree it was made of."""
    run("xorriso", *options, "-outdev", image, "-map", tree, "/", "-commit")
    check_same(image, tree)


@pytest.mark.tools
@pytest.mark.parametrize("program", ["genisoimage", "xorriso"])
def test_hard_links_share_a_node(tree: Path, image: Path, program: str) -> None:
    """Names of one object lead to one node, and no other names do."""
    if program == "genisoimage":
        run("genisoimage", "-quiet", "-R", "-cache-inodes", "-o", image, tree)
    else:
        run("xorriso", "-hardlinks", "on", "-outdev", image, "-map", tree, "/", "-commit")
    with FileDevice.open(image) as device:
        found = paths_of(open_volume(device))
    assert found[b"hard link"].node is found[b"hello.txt"].node
    assert found[b"hello.txt"].node.links == 2
    assert len({entry.node.number for entry in found.values()}) == len(found) - 1


@pytest.mark.tools
def test_same_as_extracted(tree: Path, image: Path, tmp_path: Path) -> None:
    """xorriso extracts what we read; 7z finds the same names and sizes in the Joliet tree."""
    run("genisoimage", "-quiet", "-R", "-J", "-joliet-long", "-o", image, tree)
    out = tmp_path / "out"
    # It fails over the device nodes, says so, and goes on: what is compared is what it wrote.
    command = ["xorriso", "-abort_on", "NEVER", "-osirrox", "on", "-indev", str(image)]
    command += ["-extract", "/", str(out), "-rollback_end"]
    subprocess.run(command, check=False, capture_output=True)
    listed = run("7z", "l", "-slt", image)
    with FileDevice.open(image) as device:
        found = facts_of(open_volume(device))
        joliet = open_volume(device, prefer="joliet")
        files = {path: entry.node for path, entry in paths_of(joliet).items() if path}
        contents = {joliet.read(node, 0, node.size) for node in files.values()}
    extracted = facts_of_tree(out)
    for path, entry in found.items():
        if entry[0] == stat.S_IFLNK:  # xorriso does not restore the times of links
            extracted[path] = (*extracted[path][:4], entry[4], *extracted[path][5:])
    devices = {b"null", b"disk", b"large"}  # which xorriso leaves out
    kept = {path: found[path] for path in found.keys() - devices - {b"", b"rr_moved"}}
    assert kept == {path: extracted[path] for path in extracted.keys() - {b"", b"rr_moved"}}
    pattern = re.compile(r"^Path = (.*)\nFolder = .*\nSize = (\d*)", re.MULTILINE)
    sizes = {os.fsencode(name): int(size or 0) for name, size in pattern.findall(listed)}
    sizes = {name: size for name, size in sizes.items() if not name.startswith(b"[BOOT]")}
    assert {name: node.size for name, node in files.items()} == sizes
    assert b"hello\n" * 1000 in contents


@pytest.mark.tools
def test_joliet_names(image: Path, tmp_path: Path) -> None:
    """Names of Joliet come as UTF-8, those beyond the basic plane and of 103 units too."""
    tree = tmp_path / "tree"
    tree.mkdir()
    names = ["grüße.txt", "日本語", "\N{GRINNING FACE}.png", "x" * 103, "a b;c", "no version."]
    for name in names:
        (tree / name).write_bytes(os.fsencode(name))
    run(
        "xorriso",
        "-compliance",
        "joliet_long_names:joliet_utf16",
        "-joliet",
        "on",
        "-outdev",
        image,
        "-map",
        tree,
        "/",
        "-commit",
    )
    with FileDevice.open(image) as device:
        volume = open_volume(device, prefer="joliet")
        found = {path: volume.read(entry.node, 0, 1000) for path, entry in paths_of(volume).items()}
        assert volume.namespace == "joliet"
    del found[b""]
    expected = {os.fsencode(name).replace(b";", b"_"): os.fsencode(name) for name in names}
    assert found == expected


@pytest.mark.tools
def test_plain_names(tree: Path, image: Path) -> None:
    """Without extensions, names are what isoinfo lists, but for the version."""
    run("genisoimage", "-quiet", "-iso-level", "2", "-f", "-o", image, tree / "many")
    listed = run("isoinfo", "-f", "-i", image).split()
    with FileDevice.open(image) as device:
        volume = open_volume(device)
        found = [path.decode() for path in paths_of(volume) if path]
        assert volume.namespace == "plain"
        assert volume.views.keys() == {"plain"}
    assert [f"/{name};1" for name in found] == listed
    assert len(found) == 150


@pytest.mark.tools
@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("rock_ridge", ["1.09", "1.10", "1.12"])
def test_pycdlib(image: Path, level: int, rock_ridge: str) -> None:
    """What pycdlib writes at every level is read in each of its trees."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=level, rock_ridge=rock_ridge, joliet=3, vol_ident="PYCDLIB")
    iso.add_directory("/DIR", rr_name="directory", joliet_path="/directory")
    iso.add_fp(
        io.BytesIO(b"content"),
        7,
        "/DIR/FILE.TXT;1" if level < 4 else "/DIR/file.txt",
        rr_name="r" * 200,
        joliet_path="/directory/a file",
    )
    iso.add_symlink("/LINK.;1" if level < 4 else "/LINK", rr_symlink_name="l", rr_path="/x/../y")
    iso.write(str(image))
    iso.close()
    plain = b"FILE.TXT" if level < 4 else b"file.txt"
    with FileDevice.open(image) as device:
        for prefer, path in (
            ("rockridge", b"directory/" + b"r" * 200),
            ("joliet", b"directory/a file"),
            ("plain", b"DIR/" + plain),
            ("enhanced", (b"DIR/" if level == 4 else b"directory/") + plain),
        ):
            if prefer == "enhanced" and level < 4:
                continue
            volume = open_volume(device, prefer=prefer)  # type: ignore[arg-type]
            found = paths_of(volume)
            assert volume.namespace == prefer
            assert volume.read(found[path].node, 0, 100) == b"content"
        volume = open_volume(device)
        assert paths_of(volume)[b"l"].node.target == b"/x/../y"
        assert volume.label == b"PYCDLIB"
        assert check_volume(device) == []


@pytest.mark.tools
@pytest.mark.slow
def test_multi_extent(image: Path, tmp_path: Path) -> None:
    """A file of more than 4 GiB is read over the borders of its extents."""
    tree = tmp_path / "tree"
    tree.mkdir()
    marks = {0: b"start", 4 * GIB - 2051: b"border" * 700, 4 * GIB + 5 * MIB: b"end"}
    with (tree / "large").open("wb") as file:
        for at, mark in marks.items():
            file.seek(at)
            file.write(mark)
    (tree / "next").write_bytes(b"next")
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-iso-level", "3", str(tree)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as source, image.open("wb") as target:
        assert source.stdout is not None
        while piece := source.stdout.read(MIB):  # zeros become holes
            if piece.strip(b"\0"):
                target.write(piece)
            else:
                target.seek(len(piece), os.SEEK_CUR)
        target.truncate()
    assert source.returncode == 0
    with FileDevice.open(image) as device:
        volume = open_volume(device)
        found = paths_of(volume)
        node = found[b"large"].node
        assert node.size == 4 * GIB + 5 * MIB + 3
        assert len(volume.extents(node)) > 1
        for at, mark in marks.items():
            assert volume.read(node, at, len(mark)) == mark
        assert volume.read(node, 2 * GIB, 100) == bytes(100)
        assert volume.read(found[b"next"].node, 0, 10) == b"next"
        assert check_volume(device) == []


@pytest.mark.tools
def test_el_torito_and_hybrid(tree: Path, image: Path, tmp_path: Path) -> None:
    """The catalogue of a BIOS and EFI disc, with a partition table in front, is as xorriso says."""
    boot = tmp_path / "boot"
    boot.mkdir()
    (boot / "bios.img").write_bytes(b"BIOS".ljust(8192, b"\1"))
    (boot / "efi.img").write_bytes(b"EFI".ljust(65536, b"\2"))
    mbr = tmp_path / "mbr.bin"
    mbr.write_bytes(b"\x33\xed".ljust(432, b"\x90"))
    run(
        "xorriso",
        "-as",
        "mkisofs",
        "-quiet",
        "-R",
        "-J",
        "-o",
        image,
        "-isohybrid-mbr",
        mbr,
        "-c",
        "boot.cat",
        "-b",
        "bios.img",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-eltorito-alt-boot",
        "-e",
        "efi.img",
        "-no-emul-boot",
        "-isohybrid-gpt-basdat",
        boot,
    )
    with FileDevice.open(image) as device:
        assert probe(device) == "iso9660"
        volume = open_volume(device)
        catalogue = volume.boot_catalogue()
        found = paths_of(volume)
        assert catalogue is not None
        assert catalogue.is_checksum_right
        assert catalogue.has_last_header
        assert [(item.platform, item.load_size) for item in catalogue.images] == [
            (0, 2048),
            (0xEF, 65536),
        ]
        for item, name in zip(catalogue.images, (b"bios.img", b"efi.img"), strict=True):
            assert item.is_bootable
            assert item.position == volume.extents(found[name].node)[0].position
        assert catalogue.position == volume.extents(found[b"boot.cat"].node)[0].position
        assert check_volume(device) == []


@pytest.mark.tools
def test_sessions_in_place(image: Path, tmp_path: Path) -> None:
    """Of an image that xorriso wrote to twice, the newest session is shown, and the first on
    demand."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
        run("xorriso", "-dev", image, "-map", tmp_path / name, f"/{name}", "-commit")
    with FileDevice.open(image) as device:
        assert set(paths_of(open_volume(device))) == {b"", b"one", b"two"}
        assert set(paths_of(open_volume(device, session=32))) == {b"", b"one"}
        volume = open_volume(device, session="last")
        assert volume.read(paths_of(volume)[b"two"].node, 0, 9) == b"two"
        assert check_volume(device) == []


@pytest.mark.tools
def test_sessions_one_behind_another(image: Path, tmp_path: Path) -> None:
    """In an image of a disc with two tracks, the last session is found behind the first."""
    second = tmp_path / "second.iso"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(name.encode())
    run("genisoimage", "-quiet", "-R", "-o", image, tmp_path / "one")
    start = -(-image.stat().st_size // 2048 // 32) * 32 + 32
    options = ["-C", f"0,{start}", "-M", image, "-o", second]
    run("genisoimage", "-quiet", "-R", *options, tmp_path / "two")
    with image.open("r+b") as file:
        file.seek(start * 2048)
        file.write(second.read_bytes())
    with FileDevice.open(image) as device:
        assert find_sessions(device) == [0, start]
        assert set(paths_of(open_volume(device))) == {b"", b"one"}
        volume = open_volume(device, session="last")
        found = paths_of(volume)
        assert set(found) == {b"", b"one", b"two"}
        for name in (b"one", b"two"):
            assert volume.read(found[name].node, 0, 9) == name
        assert check_volume(device) == []
        assert check_volume(device, session=start) == []


@pytest.mark.tools
def test_identity(tree: Path, image: Path) -> None:
    """UUID, label and block size are as blkid prints them; a drive's sectors change nothing."""
    run("genisoimage", "-quiet", "-R", "-J", "-V", "My Disc", "-o", image, tree / "dir")
    printed = run("blkid", "--probe", "-o", "export", image)
    values = dict(line.partition("=")[::2] for line in printed.splitlines())
    with FileDevice.open(image, sector_size=2048) as device:
        volume = open_any(device)
        assert (volume.type, volume.uuid) == (values["TYPE"], values["UUID"])
        assert volume.label == b"My Disc"
        assert volume.label == values["LABEL"].replace("\\ ", " ").encode()
        assert volume.block_size == 2048
        assert volume.size == volume.used_size() == device.size
        described = volume.describe()
        assert described["namespaces"] == {"plain": "", "rockridge": "1.10", "joliet": "3"}


@pytest.mark.tools
def test_compressed_files(image: Path, tmp_path: Path) -> None:
    """Files compressed by xorriso are read as they were; they have no extents to give."""
    tree = tmp_path / "tree"
    tree.mkdir()
    content = b"".join(b"line %d\n" % number for number in range(20_000)) + bytes(100_000)
    (tree / "text").write_bytes(content)
    run(
        "xorriso",
        "-outdev",
        image,
        "-map",
        tree,
        "/",
        "-set_filter_r",
        "--zisofs",
        "/",
        "--",
        "-commit",
    )
    with FileDevice.open(image) as device:
        volume = open_volume(device)
        node = paths_of(volume)[b"text"].node
        assert node.size == len(content)
        assert volume.read(node, 0, len(content)) == content
        assert volume.read(node, 65_530, 20) == content[65_530:65_550]
        assert volume.read(node, len(content) - 5, 100) == content[-5:]
        with pytest.raises(UnsupportedError, match="compressed"):
            volume.extents(node)


def test_writing_is_refused() -> None:
    """The driver offers no plan of such a volume, and says so."""
    driver = driver_of("iso9660")
    with pytest.raises(UnsupportedError, match="making iso9660"):
        driver.plan_volume({}, size=1, sector_size=512, entries=(), order=())
    with pytest.raises(UnsupportedError, match="making iso9660"):
        driver.minimum_size({}, ())
