# SPDX-License-Identifier: Apache-2.0
"""Keyboard layouts of the console, enough to type an id and a password.

The kernel's own layout is American.  A layout here lists, row by row, what the keys give
plain, with Shift, and with AltGr; it is loaded key by key.  Dead keys are loaded as the
character they show, so accents stand for themselves and do not combine.

Source: Linux keyboard driver, linux/kd.h (KDSKBENT), linux/keyboard.h; the layouts are the
national standards as printed on the keys (NF Z71-300, DIN 2137-1, BS 4822, ...).
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import NamedTuple

CONSOLE = "/dev/tty1"
KDSKBENT = 0x4B47  # linux/kd.h
KDSKBMODE = 0x4B45
K_UNICODE = 3
_ENTRY = struct.Struct("<BBH")  # table (shift state), key code, action
_PLAIN, _SHIFT, _ALTGR = 0, 1, 2
_LETTER = 0xB00  # KT_LETTER << 8: a letter, which Caps Lock turns round
_UNICODE = 0xF000  # actions above 0x0fff are Unicode characters, stored with this flipped

# Key codes of the rows, left to right: digits; upper, middle and lower letters; the extra key
# left of the lower row on ISO keyboards.
_ROWS = (
    (41, *range(2, 14)),
    tuple(range(16, 28)),
    (*range(30, 41), 43),
    (86, *range(44, 54), 89),  # 89: a key that only Brazilian keyboards have
)


class Layout(NamedTuple):
    """The characters of the four rows for one shift state each; a blank keeps the key as it is."""

    plain: tuple[str, str, str, str]
    shift: tuple[str, str, str, str]
    altgr: tuple[str, str, str, str] = ("", "", "", "")


_US = Layout(
    ("`1234567890-=", "qwertyuiop[]", "asdfghjkl;'\\", "\\zxcvbnm,./"),
    ("~!@#$%^&*()_+", "QWERTYUIOP{}", 'ASDFGHJKL:"|', "|ZXCVBNM<>?"),
)
KEYMAPS: dict[str, Layout] = {
    "us": _US,
    "uk": Layout(
        ("`1234567890-=", "qwertyuiop[]", "asdfghjkl;'#", "\\zxcvbnm,./"),
        ('¬!"£$%^&*()_+', "QWERTYUIOP{}", "ASDFGHJKL:@~", "|ZXCVBNM<>?"),
        ("    €        ", "", "", ""),
    ),
    "de": Layout(
        ("^1234567890ß´", "qwertzuiopü+", "asdfghjklöä#", "<yxcvbnm,.-"),
        ('°!"§$%&/()=?`', "QWERTZUIOPÜ*", "ASDFGHJKLÖÄ'", ">YXCVBNM;:_"),
        ("  ²³   {[]}\\ ", "@ €        ~", "", "|      µ   "),
    ),
    "fr": Layout(
        ("²&é\"'(-è_çà)=", "azertyuiop^$", "qsdfghjklmù*", "<wxcvbn,;:!"),
        ("~1234567890°+", "AZERTYUIOP¨£", "QSDFGHJKLM%µ", ">WXCVBN?./§"),
        ("  ~#{[|`\\^@]}", "  €        ¤", "", ""),
    ),
    "be": Layout(
        ("²&é\"'(§è!çà)-", "azertyuiop^$", "qsdfghjklmùµ", "<wxcvbn,;:="),
        ("³1234567890°_", "AZERTYUIOP¨*", "QSDFGHJKLM%£", ">WXCVBN?./+"),
        (" |@#  ^  {}  ", "  €       []", "          ´`", "\\         ~"),
    ),
    "es": Layout(
        ("º1234567890'¡", "qwertyuiop`+", "asdfghjklñ´ç", "<zxcvbnm,.-"),
        ('ª!"·$%&/()=?¿', "QWERTYUIOP^*", "ASDFGHJKLÑ¨Ç", ">ZXCVBNM;:_"),
        ("\\|@#~€¬      ", "  €       []", "          {}", ""),
    ),
    "it": Layout(
        ("\\1234567890'ì", "qwertyuiopè+", "asdfghjklòàù", "<zxcvbnm,.-"),
        ('|!"£$%&/()=?^', "QWERTYUIOPé*", "ASDFGHJKLç°§", ">ZXCVBNM;:_"),
        ("       {[]}`~", "  €       []", "         @# ", ""),
    ),
    "pt": Layout(
        ("\\1234567890'«", "qwertyuiop+´", "asdfghjklçº~", "<zxcvbnm,.-"),
        ('|!"#$%&/()=?»', "QWERTYUIOP*`", "ASDFGHJKLÇª^", ">ZXCVBNM;:_"),
        ("  @£§€ {[]}  ", "  €       ¨ ", "", ""),
    ),
    "se": Layout(
        ("§1234567890+´", "qwertyuiopå¨", "asdfghjklöä'", "<zxcvbnm,.-"),
        ('½!"#¤%&/()=?`', "QWERTYUIOPÅ^", "ASDFGHJKLÖÄ*", ">ZXCVBNM;:_"),
        ("  @£$€ {[]}\\ ", "  €        ~", "", "|      µ   "),
    ),
    "dk": Layout(
        ("½1234567890+´", "qwertyuiopå¨", "asdfghjklæø'", "<zxcvbnm,.-"),
        ('§!"#¤%&/()=?`', "QWERTYUIOPÅ^", "ASDFGHJKLÆØ*", ">ZXCVBNM;:_"),
        ("  @£$€ {[]} |", "  €        ~", "", "\\      µ   "),
    ),
    "no": Layout(
        ("|1234567890+\\", "qwertyuiopå¨", "asdfghjkløæ'", "<zxcvbnm,.-"),
        ('§!"#¤%&/()=?`', "QWERTYUIOPÅ^", "ASDFGHJKLØÆ*", ">ZXCVBNM;:_"),
        ("  @£$€ {[]} ´", "  €        ~", "", "       µ   "),
    ),
    "ch": Layout(
        ("§1234567890'^", "qwertzuiopü¨", "asdfghjklöä$", "<yxcvbnm,.-"),
        ('°+"*ç%&/()=?`', "QWERTZUIOPè!", "ASDFGHJKLéà£", ">YXCVBNM;:_"),
        (" ¦@#°§¬|¢  ´~", "  €       []", "          {}", "\\          "),
    ),
    "pl": Layout(
        ("`1234567890-=", "qwertyuiop[]", "asdfghjkl;'\\", " zxcvbnm,./"),
        ("~!@#$%^&*()_+", "QWERTYUIOP{}", 'ASDFGHJKL:"|', " ZXCVBNM<>?"),
        ("     €       ", "  ę     ó   ", "ąś      ł   ", " żźć  ń    "),
    ),
    "cz": Layout(
        (";+ěščřžýáíé=´", "qwertzuiopú)", "asdfghjklů§¨", "\\yxcvbnm,.-"),
        ("°1234567890%ˇ", "QWERTZUIOP/(", "ASDFGHJKL\"!'", "|YXCVBNM?:_"),
        ("`!@#$%^&*{}  ", "\\|€       []", "~đĐ[]`'łŁ$'\\", "/°#&@{}^<>*"),
    ),
    "hu": Layout(
        ("0123456789öüó", "qwertzuiopőú", "asdfghjkléáű", "íyxcvbnm,.-"),
        ("§'\"+!%/=()ÖÜÓ", "QWERTZUIOPŐÚ", "ASDFGHJKLÉÁŰ", "ÍYXCVBNM?:_"),
        (" ~ˇ^˘°˛`˙´˝¨¸", "\\|    €   ÷×", " đĐ[]  łŁ$ß¤", "<>#&@{} ;>*"),
    ),
    "tr": Layout(
        ('"1234567890*-', "qwertyuıopğü", "asdfghjklşi,", "<zxcvbnmöç."),
        ("é!'^+%&/()=?_", "QWERTYUIOPĞÜ", "ASDFGHJKLŞİ;", ">ZXCVBNMÖÇ:"),
        ("<>£#$½ {[]}\\|", "@ €        ~", "          ´`", "|          "),
    ),
    "br": Layout(
        ("'1234567890-=", "qwertyuiop´[", "asdfghjklç~]", "\\zxcvbnm,.;/"),
        ('"!@#$%¨&*()_+', "QWERTYUIOP`{", "ASDFGHJKLÇ^}", "|ZXCVBNM<>:?"),
        (" ¹²³£¢¬    \\§", "/?°         ", "            ", "           °"),
    ),
    "latam": Layout(
        ("|1234567890'¿", "qwertyuiop´+", "asdfghjklñ{}", "<zxcvbnm,.-"),
        ('°!"#$%&/()=?¡', "QWERTYUIOP¨*", "ASDFGHJKLÑ[]", ">ZXCVBNM;:_"),
        ("¬|@  ¬ {[]}\\ ", "@          ~", "          ^`", "\\          "),
    ),
    "ca": Layout(
        ("#1234567890-=", "qwertyuiop^¸", "asdfghjkl;`<", "«zxcvbnm,.é"),
        ('|!"/$%?&*()_+', "QWERTYUIOP^¨", "ASDFGHJKL:`>", "»ZXCVBNM'.É"),
        ("\\±@£¢¤¬¦²³¼½¾", "        §¶[]", "         ~{}", "°      µ   "),
    ),
    "dvorak": Layout(
        ("`1234567890[]", "',.pyfgcrl/=", "aoeuidhtns-\\", " ;qjkxbmwvz"),
        ("~!@#$%^&*(){}", '"<>PYFGCRL?+', "AOEUIDHTNS_|", " :QJKXBMWVZ"),
    ),
}
KEYMAPS["fi"] = KEYMAPS["se"]


def entries_of(layout: Layout) -> list[tuple[int, int, int]]:
    """Return (table, key code, action) for every key of `layout` that is not blank."""
    entries = []
    for table, rows in ((_PLAIN, layout.plain), (_SHIFT, layout.shift), (_ALTGR, layout.altgr)):
        for codes, characters in zip(_ROWS, rows, strict=True):
            for code, character in zip(codes, characters, strict=False):
                if character != " ":
                    entries.append((table, code, action_of(character)))
    return entries


def layouts_for(text: str) -> list[str]:
    """Return the names of the layouts that can type `text`, in their order here."""
    wanted = {action_of(character) for character in text if character != " "}
    american = {(table, code): action for table, code, action in entries_of(_US)}
    found = []
    for name, layout in KEYMAPS.items():
        own = {(table, code): action for table, code, action in entries_of(layout)}
        if wanted <= set({**american, **own}.values()):
            found.append(name)
    return found


def action_of(character: str) -> int:
    """Return the kernel's action that types `character`."""
    value = ord(character)
    if character.isascii():
        return (_LETTER if character.isalpha() else 0) | value
    return value ^ _UNICODE


def load_keymap(name: str, console: str = CONSOLE) -> bool:
    """Load a layout into the console's keyboard driver; False if there is no layout of this name.

    A machine without a console keyboard does not fail: the serial line needs no layout.
    """
    layout = KEYMAPS.get(name)
    if layout is None:
        return False
    try:
        fd = os.open(console, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return True
    try:
        fcntl.ioctl(fd, KDSKBMODE, K_UNICODE)
        for table, code, action in entries_of(layout):
            fcntl.ioctl(fd, KDSKBENT, _ENTRY.pack(table, code, action))
    except OSError:
        return True
    finally:
        os.close(fd)
    return True
