# SPDX-License-Identifier: Apache-2.0
# A boot sector that says PANICS times what Linux says when it finds no timer, and stops; when it
# is started once more it says STARTED and restarts the machine.  It counts in its own sector.

.intel_syntax noprefix
.code16
.text

start:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    cld
    cmp byte ptr [0x7c00 + (count - start)], PANICS
    je fine
    inc byte ptr [0x7c00 + (count - start)]
    mov ax, 0x0301               # write this sector back
    mov bx, 0x7c00
    mov cx, 1
    xor dh, dh
    int 0x13
    mov si, 0x7c00 + (panic - start)
    call say
1:  hlt
    jmp 1b
fine:
    mov si, 0x7c00 + (started - start)
    call say
    ljmp 0xffff, 0               # the BIOS starts anew
    hlt
say:
    mov dx, 0x3fb                # line control: 8 bits
    mov al, 3
    out dx, al
2:  lodsb
    test al, al
    jz 4f
    mov ah, al
    mov dx, 0x3fd
3:  in al, dx
    test al, 0x20                # room to transmit
    jz 3b
    mov dx, 0x3f8
    mov al, ah
    out dx, al
    jmp 2b
4:  ret
panic: .asciz "---[ end Kernel panic - not syncing: IO-APIC + timer doesn't work! ]---\n"
started: .asciz "STARTED\n"
count: .byte 0
    .org 510
    .word 0xaa55
