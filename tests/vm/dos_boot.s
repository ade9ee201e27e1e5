# SPDX-License-Identifier: Apache-2.0
# A master boot record, boot sectors and two system files that demand what those of MS-DOS do.
#
# Assembled with --defsym PART=0 (MBR), 12 or 16 or 32 (boot sector of that FAT), 1 (IO.SYS).
# Says DOS-STARTED or why not on port E9, and ends the machine through port F4.
#
# The boot sector reads by cylinder, head and sector with the geometry of its own BPB, and finds
# everything by position: the first two entries of the root directory must be IO.SYS and
# MSDOS.SYS; IO.SYS is taken from the first data cluster on (behind a FAT32 root directory that is
# there), sector after sector, and must add up to zero; so must MSDOS.SYS right behind it.

.intel_syntax noprefix
.code16
.text

.set IO, 0x0700                  # where IO.SYS goes
.set MSDOS, 0x3000               # where IO.SYS takes MSDOS.SYS
.set ROOT, 0x0500                # first sector of the root directory
.set DATA, 0x04f0                # LBA of the first cluster that counts
.set DRIVE, 0x04f8
.set READ, 0x04fa                # address of the boot sector's read routine, for IO.SYS

.if PART == 0
# Relocates itself to 0600 and starts the active partition by the CHS address in its entry.
start:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    cld
    mov si, 0x7c00
    mov di, 0x0600
    mov cx, 256
    rep movsw
    ljmp 0, 0x0600 + (here - start)
here:
    mov si, 0x0600 + 446
    mov cx, 4
1:  test byte ptr [si], 0x80
    jnz 2f
    add si, 16
    loop 1b
    mov si, 0x0600 + (no_active - start)
    jmp say
2:  mov dh, [si + 1]
    mov cx, [si + 2]
    mov bx, 0x7c00
    mov ax, 0x0201
    int 0x13
    jc 3f
    cmp word ptr [0x7dfe], 0xaa55
    jne 3f
    ljmp 0, 0x7c00
3:  mov si, 0x0600 + (no_sector - start)
say:
    lodsb
    test al, al
    jz 4f
    out 0xe9, al
    jmp say
4:  mov al, 1
    out 0xf4, al
    hlt
no_active: .asciz "NO-ACTIVE-PARTITION\n"
no_sector: .asciz "NO-BOOT-SECTOR\n"
.endif

.if PART > 1
.set BPB, 0x7c00
start:
    jmp main
    nop
    .if PART == 32
    .org 90
    .else
    .org 62
    .endif
main:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    cld
    mov [DRIVE], dl
    mov word ptr [READ], 0x7c00 + (read - start)
    movzx eax, byte ptr [BPB + 16]       # FATs
    .if PART == 32
    mov ebx, [BPB + 36]
    .else
    movzx ebx, word ptr [BPB + 22]
    .endif
    mul ebx
    movzx ebx, word ptr [BPB + 14]       # reserved sectors
    add eax, ebx
    add eax, [BPB + 28]                  # hidden sectors
    .if PART == 32
    mov [DATA], eax
    movzx ecx, byte ptr [BPB + 13]
    mov ebx, [BPB + 44]                  # root cluster
    sub ebx, 2
    jnz 1f
    add [DATA], ecx
1:  imul ebx, ecx
    add eax, ebx
    .else
    movzx ebx, word ptr [BPB + 17]       # root entries
    add ebx, 15
    shr ebx, 4
    add ebx, eax
    mov [DATA], ebx
    .endif
    mov bx, ROOT
    call read
    mov si, 0x7c00 + (names - start)
    mov di, ROOT
    mov cx, 11
    repe cmpsb
    jne bad
    mov di, ROOT + 32
    mov cx, 11
    repe cmpsb
    jne bad
    mov eax, [DATA]
    mov bx, IO
    mov cx, [ROOT + 28]                  # size of IO.SYS
    add cx, 511
    shr cx, 9
2:  call read
    inc eax
    add bx, 512
    loop 2b
    cmp word ptr [IO], 0x4f49            # "IO"
    jne bad
    ljmp 0, IO + 2
read:                                    # one sector, LBA eax, to es:bx
    pushad
    xor edx, edx
    movzx ecx, word ptr [BPB + 24]
    div ecx
    inc dx
    push dx
    xor edx, edx
    movzx ecx, word ptr [BPB + 26]
    div ecx
    pop cx
    mov dh, dl
    mov ch, al
    shl ah, 6
    or cl, ah
    mov dl, [DRIVE]
    mov ax, 0x0201
    int 0x13
    jc bad
    popad
    ret
bad:
    mov si, 0x7c00 + (no_system - start)
3:  lodsb
    test al, al
    jz 4f
    out 0xe9, al
    jmp 3b
4:  mov al, 1
    out 0xf4, al
    hlt
names: .ascii "IO      SYSMSDOS   SYS"
no_system: .asciz "NO-SYSTEM\n"
    .org 510
    .word 0xaa55
.endif

.if PART == 1
start:
    .ascii "IO"
    mov si, IO
    mov cx, [ROOT + 28]
    call sum
    mov si, IO + (io_bad - start)
    jnz say
    movzx eax, word ptr [ROOT + 28]      # clusters of IO.SYS, in sectors
    add eax, 511
    shr eax, 9
    movzx ecx, byte ptr [0x7c0d]
    add eax, ecx
    dec eax
    xor edx, edx
    div ecx
    mul ecx
    add eax, [DATA]
    mov bx, MSDOS
    mov cx, [ROOT + 32 + 28]
    add cx, 511
    shr cx, 9
1:  call [READ]
    inc eax
    add bx, 512
    loop 1b
    mov si, MSDOS
    mov cx, [ROOT + 32 + 28]
    call sum
    mov si, IO + (dos_bad - start)
    jnz say
    mov si, IO + (started - start)
say:
    lodsb
    test al, al
    jz 2f
    out 0xe9, al
    jmp say
2:  mov al, 1
    out 0xf4, al
    hlt
sum:                                     # of cx bytes of words at si; zero flag if it is zero
    shr cx, 1
    xor dx, dx
3:  lodsw
    add dx, ax
    loop 3b
    test dx, dx
    ret
io_bad: .asciz "IO-SYS-IN-PIECES\n"
dos_bad: .asciz "MSDOS-SYS-ELSEWHERE\n"
started: .asciz "DOS-STARTED\n"
.endif
