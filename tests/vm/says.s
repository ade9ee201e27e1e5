# SPDX-License-Identifier: Apache-2.0
# A boot sector that says on the serial line what stands behind it, up to a zero, and halts.

.intel_syntax noprefix
.code16
.text

start:
    xor ax, ax
    mov ds, ax
    cld
    mov si, 0x7c00 + (text - start)
    mov dx, 0x3fb                # line control: 8 bits
    mov al, 3
    out dx, al
1:  lodsb
    test al, al
    jz 3f
    mov ah, al
    mov dx, 0x3fd
2:  in al, dx
    test al, 0x20                # room to transmit
    jz 2b
    mov dx, 0x3f8
    mov al, ah
    out dx, al
    jmp 1b
3:  hlt
    jmp 3b
text:
