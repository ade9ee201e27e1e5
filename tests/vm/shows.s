# SPDX-License-Identifier: Apache-2.0
# A boot sector that shows on a cleared screen what stands behind it, up to a zero, and halts.

.intel_syntax noprefix
.code16
.text

start:
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
    cld
    mov ax, 3                    # text, 80 by 25, cleared
    int 0x10
    mov si, 0x7c00 + (text - start)
1:  lodsb
    test al, al
    jz 2f
    mov ah, 0x0e                 # teletype
    mov bx, 7
    int 0x10
    jmp 1b
2:  hlt
    jmp 2b
text:
