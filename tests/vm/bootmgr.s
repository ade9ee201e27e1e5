# SPDX-License-Identifier: Apache-2.0
# A BOOTMGR that says that it was loaded: on port E9 and on the serial line; then the machine ends.
#
# Microsoft's boot record loads BOOTMGR to 2000:0000 and jumps to its first byte.  The file is
# made longer than its record can hold, so that the boot record has to find its clusters; the last
# ones are checked: all of the file adds up to zero.

.intel_syntax noprefix
.code16
.text

.set SIZE, 30 * 1024

start:
    mov ax, cs
    mov ds, ax
    cld
    xor si, si
    mov cx, SIZE / 2
    xor dx, dx
1:  lodsw
    add dx, ax
    loop 1b
    mov si, started - start
    test dx, dx
    jz say
    mov si, damaged - start
say:
    mov dx, 0x3fb                # line control: 8 bits
    mov al, 3
    out dx, al
2:  lodsb
    test al, al
    jz done
    out 0xe9, al
    mov ah, al
    mov dx, 0x3fd
3:  in al, dx
    test al, 0x20                # room to transmit
    jz 3b
    mov dx, 0x3f8
    mov al, ah
    out dx, al
    jmp 2b
done:
    mov al, 1
    out 0xf4, al
4:  hlt                          # where nothing takes that, it waits
    jmp 4b
started: .asciz "BOOTMGR-STARTED\n"
damaged: .asciz "BOOTMGR-DAMAGED\n"
