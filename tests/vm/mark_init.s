# SPDX-License-Identifier: Apache-2.0
# PID 1 of a machine that has nothing else: says that it was started and restarts the machine.
#
# Source: linux arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/reboot.h.

.intel_syntax noprefix
.globl _start
.text
_start:
    mov eax, 1                   # write to the console, which the kernel has opened
    mov edi, 1
    lea rsi, [rip + mark]
    mov edx, offset marked - mark
    syscall
    mov eax, 169                 # reboot
    mov edi, 0xfee1dead
    mov esi, 672274793
    mov edx, 0x01234567          # restart, which ends QEMU
    syscall
1:  jmp 1b
mark: .ascii "STARTED-FROM-NTFS\n"
marked:
