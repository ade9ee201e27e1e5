# SPDX-License-Identifier: Apache-2.0
"""Quota files and project numbers: packed and read, laid out again, kept in step by the editor."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import CorruptError, FilesystemError, NotFoundError, UnsupportedError
from fsdrivers.ext.check import check_volume
from fsdrivers.ext.edit import open_editor
from fsdrivers.ext.format.flags import InodeFlags
from fsdrivers.ext.quota import (
    ENTRIES_PER_BLOCK,
    Limits,
    QuotaFacts,
    QuotaKind,
    Usage,
    describe_quota,
    file_size,
    pack_file,
    quotas_of,
    unpack_file,
)
from fsdrivers.ext.volume import open_volume
from fsdrivers.ext.xattrs import PROJECT_NAME, project_xattr
from tests.fsdrivers.ext.editing import blank, clock, complaints, directory_node, dump, file_node
from tests.fsdrivers.ext.mkfs_images import EXT4, Drawing, assert_clean, copy_volume
from tests.fsdrivers.ext.volumes import debugfs, make_image, open_image, paths_of
from tests.programs import run

MIB = 1 << 20
identifiers = st.integers(0, 2**32 - 1)
limits = st.builds(Limits, *(st.integers(0, 2**64 - 1) for _ in Limits._fields))
usages = st.builds(Usage, st.integers(0, 2**63), st.integers(0, 2**32))
QUOTA = ("-O", "quota,project", "-E", "quotatype=usrquota:grpquota:prjquota")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(QuotaKind),
    st.dictionaries(identifiers, limits, max_size=40),
    st.dictionaries(identifiers, usages, max_size=40),
)
def test_what_is_packed_is_read(
    kind: QuotaKind, set_limits: dict[int, Limits], used: dict[int, Usage]
) -> None:
    """Limits and use of any identifiers come back, and the size is as it was foretold."""
    set_limits = {owner: limit for owner, limit in set_limits.items() if any(limit)}
    if set_limits.get(0) == Limits(inodes_expire_s=1):
        del set_limits[0]
    facts = QuotaFacts(kind, 5, 6, 0, set_limits)
    data = pack_file(facts, used)

    assert len(data) == file_size({*set_limits, *used})
    file = unpack_file(data, kind)
    assert file.facts == facts
    assert {owner: use for owner, use in file.usage.items() if any(use)} == {
        owner: use for owner, use in used.items() if any(use)
    }
    assert quotas_of({"quotas": [describe_quota(facts)]}) == (facts,)
    with pytest.raises(CorruptError):
        unpack_file(data, QuotaKind((kind + 1) % 3))


def test_every_flipped_byte_gives_a_result_or_an_error() -> None:
    """Damage to a quota file neither hangs nor escapes the error tree."""
    facts = QuotaFacts(QuotaKind.USER, limits={7: Limits(1, 2, 3, 4)})
    data = bytearray(pack_file(facts, {owner: Usage(1, 1) for owner in range(20)}))
    for at in range(0, len(data), 3):
        data[at] ^= 0xFF
        with suppress(FilesystemError):
            unpack_file(bytes(data), QuotaKind.USER)
        data[at] ^= 0xFF


@pytest.mark.tools
def test_limits_and_use_as_e2fsprogs_says(tmp_path: Path) -> None:
    """A volume made by mke2fs has what debugfs lists; made again it has the limits and new use."""
    source = make_image(tmp_path / "source", 32 * MIB, "-t", "ext4", "-b", 4096, *QUOTA)
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    debugfs(
        source, f"write {tmp_path / 'file'} file", "sif file uid 1000", "sif file gid 100",
        "sif file projid 4294967294", "mkdir directory", "sif directory uid 70000",
    )  # fmt: skip
    run("sh", "-c", 'e2fsck -fy "$0" > /dev/null; test $? -le 1', source)
    volume = open_image(source)
    number = volume.quota_inodes()[QuotaKind.USER]
    with FileDevice.open(source, writable=True) as device:
        file = volume.quota_file(QuotaKind.USER)
        mapped = volume.metadata.inode(number).block
        (start,) = struct.unpack_from("<I", mapped, 20)
        entry = start * 4096 + file.offsets[1000]
        device.write(entry + 32, struct.pack("<QQ", 5000, 4000))  # blocks, hard and soft
    target = tmp_path / "target"
    copy_volume(source, target)

    assert_clean(source)
    assert_clean(target)
    for path in (source, target):
        listed = run("debugfs", "-R", "lq user", path).split("\n")
        (shown,) = (line.split() for line in listed if line.split()[:1] == ["1000"])
        assert [int(word) for word in shown if word.isdigit()][1:4] == [12288, 4000, 5000]
        made = open_image(path).quota_file(QuotaKind.USER)
        assert made.usage[1000] == Usage(12288, 1)
        assert made.facts.limits == {1000: Limits(5000, 4000)}
        assert open_image(path).quota_file(QuotaKind.PROJECT).usage[2**32 - 2].inodes == 1
        node = paths_of(open_image(path))[b"file"]
        assert dict(node.xattrs)[PROJECT_NAME] == struct.pack("<I", 2**32 - 2)


@pytest.mark.tools
def test_many_owners_of_a_new_volume(tmp_path: Path) -> None:
    """Thousands of owners, values in inodes and shared blocks are counted as e2fsck counts."""
    drawing = Drawing()
    for index in range(3000):
        owner = index * 7919 % 2**32
        drawing.file(2, b"%d" % index, b"x" * (index % 9000), uid=owner, gid=index % 50)
    value = (b"user.large", random.Random("content").randbytes(30_000))
    for index in range(30):
        xattrs = (project_xattr(index % 3 + 1), value, (b"user.own", b"%d" % index * 3000))
        drawing.file(2, b"a%d" % index, b"y", uid=index, xattrs=xattrs)
    facts = [describe_quota(QuotaFacts(kind)) for kind in QuotaKind]
    description = EXT4 | {
        "feature_ro_compat": 0x46B | 0x2100,
        "feature_incompat": 0x2C2 | 0x400,
        "quotas": list(facts),
    }
    target = drawing.write(tmp_path / "target", drawing.plan(description, 256 * MIB))

    assert_clean(target)
    usage = open_image(target).quota_file(QuotaKind.USER).usage
    assert len(usage) > 3000 - ENTRIES_PER_BLOCK


@pytest.mark.tools
def test_editor_keeps_use_in_step(tmp_path: Path) -> None:
    """New owners, chown, projects handed down, values in inodes, removal: e2fsck agrees."""
    device = MemoryDevice.of(blank("ext4-quota", 24 * MIB))
    editor = open_editor(device, clock=clock)
    node = replace(directory_node(), flags=int(InodeFlags.PROJINHERIT), xattrs=(project_xattr(9),))
    parent = editor.create(editor.root, b"project", node).number
    below = editor.create(parent, b"below", directory_node()).number
    for index in range(100):
        name = b"file %d" % index
        number = editor.create(below, name, file_node(uid=index * 1000, gid=index % 3)).number
        editor.write(number, 0, b"x" * index * 300)
        if index % 10 == 0:
            editor.set_xattr(number, b"user.big", b"v" * 20_000)
        if index % 7 == 0:
            editor.set_attributes(number, uid=5, gid=6)
        if index % 9 == 0:
            editor.set_xattr(number, *project_xattr(77))
        if index % 11 == 0:
            editor.remove_xattr(number, PROJECT_NAME)
        if index % 3 == 0:
            editor.unlink(below, name)
    assert dict(editor.lookup(below, b"file 1").xattrs)[PROJECT_NAME] == struct.pack("<I", 9)
    number = editor.lookup(below, b"file 22").number
    with pytest.raises(NotFoundError):
        editor.remove_xattr(number, PROJECT_NAME)
    editor.close()

    assert complaints(dump(device, tmp_path / "image")) == []
    assert check_volume(device) == []
    usage = open_volume(device).quota_file(QuotaKind.PROJECT).usage
    assert usage[9].inodes > 50


def test_projects_need_their_feature() -> None:
    """A volume without it takes no project number, be it laid out or edited."""
    drawing = Drawing()
    drawing.file(2, b"file", b"", xattrs=(project_xattr(1),))
    with pytest.raises(UnsupportedError, match="project"):
        drawing.plan(EXT4)
    editor = open_editor(MemoryDevice.of(blank("ext4")), clock=clock)
    with pytest.raises(UnsupportedError, match="project"):
        editor.set_xattr(editor.root, *project_xattr(1))
    with pytest.raises(CorruptError, match="project"):
        editor.set_xattr(editor.root, PROJECT_NAME, b"1")


@pytest.mark.tools
def test_damaged_file_costs_its_limits_alone() -> None:
    """A volume with a malformed quota file is described without its limits, and says so."""
    device = MemoryDevice.of(blank("ext4-quota", 24 * MIB))
    volume = open_volume(device)
    number = volume.quota_inodes()[QuotaKind.GROUP]
    (start,) = struct.unpack_from("<I", volume.metadata.inode(number).block, 20)
    device.write(start * volume.block_size, bytes(8))

    quotas = quotas_of(volume.describe())

    assert [facts.kind for facts in quotas] == list(QuotaKind)
    assert any("limits of quota" in text for text in volume.warnings())
    assert any("quota file" in finding.what for finding in check_volume(device))


def test_damaged_description_is_refused() -> None:
    """Quota facts of another shape than those that are described do not count."""
    good = describe_quota(QuotaFacts(QuotaKind.USER, limits={1: Limits(1)}))
    for bad in ({"kind": 3}, {"flags": -1}, {"limits": [[1, 2]]}, {"limits": [[-1, *Limits()]]}):
        with pytest.raises(CorruptError, match="quota"):
            quotas_of({"quotas": [good | bad]})
    with pytest.raises(CorruptError, match="twice"):
        quotas_of({"quotas": [good, good]})
    with pytest.raises(CorruptError, match="quotas"):
        quotas_of({})
