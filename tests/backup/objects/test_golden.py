# SPDX-License-Identifier: Apache-2.0
"""Frozen files of format 1: what was written once stays readable, and is still written so.

The bytes below were made with `os.urandom` replaced by `fixed_randomness`.  The reference
readers take nothing from the product: they follow docs/formats.md word by word.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import itertools
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backup.objects import keys
from backup.objects.content import Signer, content_id
from backup.objects.key_file import login_parameters
from backup.objects.keys import MasterKey
from backup.objects.model import BackupObject, NodeObject, ObjectKind, Piece, StreamContent
from backup.objects.pack import PackReader, PackWriter
from backup.objects.recovery import recovery_secret
from backup.objects.table import TableReader
from tests.backup.objects.samples import lookup_in, machine, sample
from tests.backup.repositories import read_index

USER, PASSWORD = "user", "password"
RECOVERY_KEY = "3JMXM-R74ZE-QJ4FT-22D23-V47GM-V41YH-372YZ-Z0WB8"
LOGIN_SECRET = bytes.fromhex("5091cf1d2a18896d3c9c51d225c01d73aeb1e23c51a98cfe42dfd58e9be23eaf")
MASTER = bytes.fromhex("2976112d29b3865b99a715079213f4fe0fec985c65f82529f173625c53fc738c")
HASH_DAT = bytes.fromhex(
    "524b4841534801001d01000085a36b646685a46e616d65a86172676f6e326964a473616c74c41029ecb9e8a9"
    "dd93861e471e99d3fac661aa6d656d6f72795f6b6962ce00010000aa697465726174696f6e7303a56c616e65"
    "7304a87665726966696572c42022f70fadeafabcbfbb43e22a4b18e0cc3e216c5ab5b1b7a1ff3af226c63511"
    "6ea777726170706564c4307acf2a843ef22cdcd730f27a22f8e966f05361d7fa867e9a2ae0a46ed9abf6bba1"
    "1eff58e9169fc2feb1bf3165ef5759a87265636f766572799192c41026c52288cfaab11bd13576a57a587eaf"
    "c430579636cffa5fb5ae5832c6fbe147dc5cd53aca61164a3f8d30b1026a1c3a95b34c5e9efd1d04a3bc399c"
    "c7bb1e2d523ba8646174615f736574c4103031323334353637383961626364656617a55b1eff96ea911b6bf4"
    "aa162b87187d7d3eb22b00db28714c58fb0122cd71cec413036198e6202bea605eef9163b1868d732c2156a9"
    "4df221da6c00829d4f"
)
PACK = bytes.fromhex(
    "524b5041434b010077c3358e6594f6144985186e295548b7395f012da0a12a5f8c06b5af265d507203e6b15c"
    "6741b0c3cbb23f1fbfd454331f127ff50a261b6765713125836aa29c2b54ee3f47fe1971414dd30c7f05d69b"
    "3b2c4cda904a60ec55815e6e3a29002f6284835ce0879876153e7c3736045f3e5952d7e9c930096d1446d079"
    "6b33573b57a6a2e85dfcd1da7270d7ee1086882d4294f20d4b583ffd64c7e1787392f3ed6532cd43752327dc"
    "e96a50035c17b1bbbdc574c4b714f63b0ed49381cabbf6e4bc60000000"
)
FIRST_TABLE = bytes.fromhex(
    "524b4f424a5401004e42be3e5a776f84eaafe20b7cf83dbd01d7010000f4bab781366879169dead9736d68d5"
    "948035427d478f7f1134cc82a319fff988ebf82a070859a5f952f41ce7e35a7bea27c952f5ab1a5cdd8edee5"
    "2084a1647381915df103731cb99da18eae027c390e7f00039ace1306ef219418a795b5d69ad0ab83fe233078"
    "589a33ad48cb3930bd82286005db7fe1865c1b89927f72a2dabf84aa4e0d1cd86449f2fb55261febe4dbadc5"
    "0efaf3973de26f4e9ecf437a68eb916079e03c65b0875634b9cd4d3c4e3c325c1beea8ee62a127ad8fad060b"
    "ebce01684a799ad82cd338fac02ff9a793e70938b3b13769448a9adfa6ec523c83d2acc18e75bc337adc18f4"
    "e81458fb082fd8e6b55ce54b251d0a9bb4a575939b493ac4fa8f934b5dfbf8468710a8ec6bfa6eb4b18388c6"
    "1c5b5a8f212c73c9a2fa983bdd102f2dc02052122adb4c1cabdb4d6c52454f67f99da380a72657f986837ce5"
    "8057eff49b12bec06762ddf7e652de943eb189d6a3d07103f64c65b89c1ed43856b70bb42e3b70d2d8a981ac"
    "61faa0de570f9dfaf2745f43809d93669c35945738db434875676a76d52521e25617275fa2e93ae15a36140a"
    "41d7325caa27a157393c3b74cbb260efb59b38958b730ddf04e665ae9298e05be845e54b6d900ca38d63882e"
    "b5ba163b51edf476b1d376c91bd395a702020100005cc9253a3964c685c16e9c2743f402e7fd99555dd5c035"
    "babb6190ea212f4fe8680c16f0ec1faa01e31bd55579685e3f27fc616008a4a0686024be5409ee55779d443c"
    "7988c891ff077b324ea3583a862d25362fdbb053fb66c5c0bd2aaaacc6e6fc5c9081939c2a3bdddcd1480836"
    "54807e1b9982106dbc9a3fe1c81b3ac1b3a783d21089d12d2e840e07188b5ee99c38d92259487839850a6f66"
    "251c9df051d3cd832316a52c896ddfe090faf1b1eb182e7ca334cc9ee82d280633612e4ad22d5bb64491aa84"
    "a101092509c4a0ed24389fbeedf13232b54a6da87f050ecda7a2b6aa407d0d5802606e071a5bca09ca1e0b46"
    "08da5489411c62e2696ebb16e04ca8f401000000000000524b4f424a454e44"
)
TABLE = bytes.fromhex(
    "524b4f424a5401012976112d29b3865b99a715079213f4fe0103020000b3b764cb1d1ab78c3bb25ad2d32241"
    "7d49ea976429ab5f8fa339ef31a5816427b6b32611dea64430905886570ce7ec6498636df6a3ced0dc60b29a"
    "7f8ba2b0b72a721eb3b8854c613ee6c5f296377fe16dafe4dee37a964c91e274ff3c4477980e78e4ac435f27"
    "6d0ff936226a0201caae3462685a577f1d5f1258974743a58a4f72fd32bd9c2ccf4599aa366783708f60df7c"
    "e863fb5a8e688fbd8c8f90c1fb0cb649850612fbf8b139267ec56a95f5fe4692b871e3a967e7771a7a34b3a6"
    "3bfa3b2dba51e59d120b886d77b87ece7d4ad44fed9b556c08d06c8ce4f70095c59bbec38dbfeb88a9d463a2"
    "c95a03c0f9243588b892ef13761a5df1c43771e4d40feb441b9b1b0b7a3d950008761e0069b2c50e3c7671fc"
    "26b2cc85c3ffa6425ef749db5df604b6332359dff3de8b40011fb34b4f79b057cf6a3e0dafaa2357143a2ff6"
    "7ffee1b35a53bda044e430dc63e972ae611e4217cbd09ad9aa1a74c9634492356a80fe5f2e9ade0590cd9c99"
    "cb3578da38f5ab427b558a42bbbc52a24ea1971d26be13829233f020147e792511186428ea4cf78572f732dc"
    "cc205c3e7b70096f5701d4861a81b89a977b41f7ed2e073ffc105aafa653fde6ad6c28d1d5f7170e7aa6a7c9"
    "5a5c17d9a80664f05a4121f281361905b3604962112bcd830ea1a863c64d12934ad3eadade70cfe33df83adf"
    "1fea96987b8416bfc957c5b9c9e2857e0202010000c0f5338adb4812c0a42ceb9efe091c97318499c322c735"
    "0b16632a95e625b254318c4cb2d23880a680c64e03fdfe39cbf9e373a16101cf3a4d2157472f03dcaa0f03c5"
    "2ad60a3021a5705c6dbd23e021d272ad10af63c88837e5e8a31dd781949d1a20dbb8c3ae869dde274d9de01a"
    "e4b0fb46438ad3d0b8167fab129872319af282252b383d8c7e4e801c0b8ef355a9a99010bd8d7e7388a6e0d6"
    "45120c2ed8eb42501db30b1959396e46ce8c22c6a7e9922e514d3df23e349f7c6ede9c0b287a2f1908382084"
    "9c81a735d5163900e53006d2a5764a1481cf4da5efcfa4a5a8d57348dc9afcdb26ee74e2851414f159d5f209"
    "5c2b681d8d54cb5d026f0ec9f41b152002000000000000524b4f424a454e44"
)
SIGNATURES = {
    "disk": "864255724d73f2e7eb37c55933d5aa80044e880a154c299b1af8521350bde20b",
    "volume": "9ed2d388db1024bc249cd7475ef0512a487456417e0c6e1e493247973b44e489",
    "label": "0d17c18df6c76b86434b6c2c3ccf9830c63cee6abe945f5bc1eaf5aa6a09da1f",
    "security": "7950c94941b1fa8b47bfb3f13650794f69a7f9141e0fa5aba77faf3d29a4e839",
    "root": "ab978518f7a2c24dddf471c9f871ce402a190f8100f8c7c86bd3fdf035ab607a",
    "etc": "ab978518f7a2c24dddf471c9f871ce402a190f8100f8c7c86bd3fdf035ab607a",
    "file": "c7e5a0061dab56545098c226388efd1251336f578653d8853aa4968bbf28d1e3",
    "link": "ea9937fdab7a0333ace1c2f7ab7e2fa5a900ca9d018b8d8bc08e0856a744af57",
    "marker": "a195b8e9e907c9797854e767145df6959c2d5854ba0542f792dd33f54d06591e",
    "boot": "67ec669547a8b12028a44b76458ece77ba4d1cf81ff283df76544d5be62a4895",
}

DATA_SET_ID = b"0123456789abcdef"
PLAINS = (b"stored", b"compressed " * 20)


def fixed_randomness() -> Callable[[int], bytes]:
    """Return a stand-in for `os.urandom` that always gives the same."""
    calls = itertools.count()
    return lambda size: hashlib.shake_128(b"golden %d" % next(calls)).digest(size)


def hkdf(secret: bytes, label: bytes, salt: bytes | None = None) -> bytes:
    """Derive a key as "Derivations" says."""
    return HKDF(SHA256(), 32, salt, b"rebuildkit/1/" + label).derive(secret)


def nonce(position: int) -> bytes:
    """Return the nonce for a position."""
    return struct.pack("<QI", position, 0)


def test_the_key_file_is_still_written_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same randomness gives the same key file, byte for byte."""
    monkeypatch.setattr("os.urandom", fixed_randomness())
    made = keys.create_key_file(USER, PASSWORD)
    data, text = keys.add_recovery_key(made.data, made.master)

    assert keys.bind(data, made.master, DATA_SET_ID) == HASH_DAT
    assert text == RECOVERY_KEY
    assert made.login_secret == LOGIN_SECRET


def test_the_key_file_is_still_read() -> None:
    """Password, recovery key and login of the frozen file work."""
    master = MasterKey(MASTER)

    assert keys.unlock(HASH_DAT, USER, PASSWORD) == master
    assert keys.unlock_with_recovery_key(HASH_DAT, RECOVERY_KEY) == master
    assert keys.login_secret(login_parameters(HASH_DAT), USER, PASSWORD) == LOGIN_SECRET
    keys.verify_binding(HASH_DAT, master, DATA_SET_ID)


def test_the_document_describes_the_key_file() -> None:
    """A reader written from docs/formats.md alone gets the master key and the login secret."""
    (length,) = struct.unpack_from("<I", HASH_DAT, 8)
    body = msgpack.unpackb(HASH_DAT[12 : 12 + length])
    code, checksum = HASH_DAT[12 + length : -32], HASH_DAT[-32:]
    kdf = body["kdf"]
    root = Argon2id(
        salt=kdf["salt"],
        length=64,
        iterations=kdf["iterations"],
        lanes=kdf["lanes"],
        memory_cost=kdf["memory_kib"],
        ad=USER.encode(),
    ).derive(PASSWORD.encode())
    master = AESGCM(hkdf(root, b"kek")).decrypt(
        bytes(12), body["wrapped"], b"rebuildkit/1/wrapped by password"
    )
    [[salt, wrapped]] = body["recovery"]
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    number = 0
    for group in RECOVERY_KEY.split("-"):
        for character in group[:4]:
            number = number * 32 + alphabet.index(character)
    recovery_kek = hkdf(number.to_bytes(20, "big"), b"recovery", salt)

    assert HASH_DAT[:8] == b"RKHASH\x01\x00"
    assert master == MASTER
    assert hkdf(root, b"verifier") == body["verifier"]
    assert hkdf(root, b"login") == LOGIN_SECRET
    assert body["data_set"] == DATA_SET_ID
    assert hashlib.sha256(HASH_DAT[:-32]).digest() == checksum
    assert hmac.digest(hkdf(master, b"key file"), HASH_DAT[: 12 + length], "sha256") == code
    assert (
        AESGCM(recovery_kek).decrypt(bytes(12), wrapped, b"rebuildkit/1/wrapped by recovery key")
        == MASTER
    )


def test_the_document_describes_what_recovery_keys_log_in_with() -> None:
    """At a server only: the file that is bound to a disc is as it was before there were any."""
    master = MasterKey(MASTER)
    unbound = keys.remove_recovery_keys(HASH_DAT, master)
    data, text = keys.add_recovery_key(unbound, master)
    (length,) = struct.unpack_from("<I", data, 8)
    body = msgpack.unpackb(data[12 : 12 + length])
    secret = hkdf(recovery_secret(text), b"recovery login")

    assert data[:8] == b"RKHASH\x01\x01"
    assert body["recovery_logins"] == [hashlib.sha256(secret).digest()]
    assert keys.recovery_login_secret(text) == secret
    bound = keys.bind(data, master, DATA_SET_ID)
    assert bound[:8] == b"RKHASH\x01\x00"
    assert b"recovery_logins" not in bound
    assert keys.unlock_with_recovery_key(bound, text) == master


def test_the_pack_is_still_written_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same randomness gives the same pack, as long as nothing in it is compressed."""
    monkeypatch.setattr("os.urandom", lambda size: PACK[8:40][:size])
    master = MasterKey(MASTER)
    writer = PackWriter(master, level=0)
    writer.add(PLAINS[0], content_id(master, PLAINS[0]))
    end = 40 + len(PLAINS[0]) + 16

    assert writer.finish().data[:end] == PACK[:end]


def test_the_pack_is_still_read() -> None:
    """All pieces of the frozen pack open."""
    reader = PackReader.from_header(MasterKey(MASTER), PACK[:40])
    opened = [
        reader.open(entry, PACK[entry.pack_offset : entry.pack_offset + entry.sealed_length])
        for entry in read_index(reader, PACK)
    ]

    assert tuple(opened) == PLAINS


def test_the_document_describes_the_pack() -> None:
    """A reader written from docs/formats.md alone gets index and pieces."""
    salt, (length,) = PACK[8:40], struct.unpack("<I", PACK[-4:])
    cipher = AESGCM(hkdf(MASTER, b"pack", salt))
    position = len(PACK) - 4 - length
    index = cipher.decrypt(nonce(position), PACK[position:-4], b"index" + PACK[:8])
    position, opened = 40, []
    for identity, sealed_length, plain_length in struct.iter_unpack("<32sII", index):
        plain = cipher.decrypt(nonce(position), PACK[position : position + sealed_length], identity)
        if sealed_length != plain_length + 16:
            plain = zstandard.decompress(plain)
        assert blake3(plain, key=hkdf(MASTER, b"content id")).digest() == identity
        opened.append(plain)
        position += sealed_length

    assert tuple(opened) == PLAINS


def second_sample() -> list[BackupObject]:
    """Return the objects of the table of version 1.1, which did not say where content began."""
    return [replace(obj, source_unit=0) if isinstance(obj, NodeObject) else obj for obj in sample()]


def first_sample() -> list[BackupObject]:
    """Return the objects of the table of version 1.0, which had less to say of a node."""
    piece = Piece(0, 100, b"C" * 32, 1, 40, 90)
    objects = []
    for obj in second_sample():
        if isinstance(obj, NodeObject):
            obj = replace(obj, name_times=None, xattrs=())
            if obj.streams:
                obj.streams = (
                    StreamContent(b"stream", 100, (piece,)),
                    StreamContent(b"empty", 0),
                )
        objects.append(obj)
    return objects


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [(FIRST_TABLE, first_sample), (TABLE, second_sample)],
    ids=["1.0", "1.1"],
)
def test_the_table_is_still_read(frozen: bytes, expected: Callable[[], list[BackupObject]]) -> None:
    """All objects of the frozen tables come back."""
    reader = TableReader(MasterKey(MASTER), io.BytesIO(frozen))

    assert list(reader) == expected()
    assert reader.summary.machine == "kiste"
    assert reader.summary.packs[0].digest == hashlib.sha256(PACK).digest()


@pytest.mark.parametrize("frozen", [FIRST_TABLE, TABLE], ids=["1.0", "1.1"])
def test_the_document_describes_the_table(frozen: bytes) -> None:
    """A reader written from docs/formats.md alone gets summary and records."""
    cipher = AESGCM(hkdf(MASTER, b"table " + frozen[:8], frozen[8:24]))

    def opened(position: int) -> tuple[int, bytes, int]:
        kind, length = struct.unpack_from("<BI", frozen, position)
        prefix, end = frozen[position : position + 5], position + 5 + length
        packed = cipher.decrypt(nonce(position), frozen[position + 5 : end], prefix)
        return kind, zstandard.decompress(packed), end

    at, magic = struct.unpack("<Q8s", frozen[-16:])
    kind, plain, end = opened(at)
    summary: Any = msgpack.unpackb(plain)
    records_kind, records, records_end = opened(24)
    unpacker = msgpack.Unpacker(unicode_errors="surrogatepass")
    unpacker.feed(records)
    decoded = list(unpacker)
    heads = [record[:3] for record in decoded]

    assert (magic, kind, end) == (b"RKOBJEND", 2, len(frozen) - 16)
    assert (summary["machine"], summary["objects"]) == ("kiste", len(sample()))
    assert summary["packs"] == struct.pack(
        "<32sQ32s", hashlib.sha256(PACK).digest(), len(PACK), PACK[8:40]
    )
    assert (records_kind, records_end) == (1, at)
    assert heads == [[obj.kind, obj.number, obj.signature] for obj in sample()]
    (streams,) = [record[24] for record in decoded if len(record) > 24 and record[24]]
    if frozen[7] == 0:
        assert [stream[:2] for stream in streams] == [[b"stream", 100], [b"empty", 0]]
        return
    assert [stream[:2] + stream[3:] for stream in streams] == [
        [b"", 1 << 50, 0x8001, 300],
        [b"empty", 0],
        [b"holes", 1 << 40, 1, 0, [[4096, 5, True]]],
        [b"stream", 100],
    ]
    assert [record[25:] for record in decoded if record[0] in (2, 8)] == [
        [
            [1, msgpack.ExtType(1, (-(2**70)).to_bytes(9, "little", signed=True)), 3, 4],
            [[b"user.z", b"\xff"]],
        ],
        [[1, 2, 3, 4]],
        [],
    ]


def test_signatures_are_still_the_same() -> None:
    """A changed signature would make every object look changed to the next backup."""
    objects = machine()
    signer = Signer(MasterKey(MASTER), lookup_in(objects))

    assert {name: signer.signature_of(obj).hex() for name, obj in objects.items()} == SIGNATURES


def test_the_document_describes_signatures_of_streams() -> None:
    """The array of a node with streams, times of its name and attributes of its own, as the
    document has it, hashes to the signature."""
    node = NodeObject(
        7, ObjectKind.FILE, 2, 6, b"name", 100, 0o777, name_flags=3, name_times=(4, 3, 2, 1),
        xattrs=((b"system.ntfs_ea", b"x"),), pieces=(Piece(0, 100, b"C" * 32, 1, 40, 90),),
        streams=(
            StreamContent(b"", 100, (), 0x4000, 12),
            StreamContent(b"a", 9, (Piece(0, 9, b"D" * 32, 1, 2, 3),)),
            StreamContent(b"b", 9, (), 1, 0, ()),
        ),
    )  # fmt: skip
    array = [
        2,
        100,
        0o777,
        0,
        0,
        0,
        None,
        None,
        None,
        0,
        [0, 0],
        b"",
        b"",
        3,
        b"",
        b"",
        None,
        [[0, 100, b"C" * 32]],
        [[b"", 100, [], 0x4000, 12], [b"a", 9, [[0, 9, b"D" * 32]]], [b"b", 9, [], 1, 0, []]],
        [4, 3, 2, 1],
        [[b"system.ntfs_ea", b"x"]],
    ]
    made = Signer(MasterKey(MASTER), {}.__getitem__).signature_of(node)

    assert made == blake3(msgpack.packb(array), key=hkdf(MASTER, b"signature")).digest()
