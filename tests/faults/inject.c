// SPDX-License-Identifier: Apache-2.0
// Lets one system call of a program fail, on purpose.  Loaded with LD_PRELOAD; see inject.py.
//
// Calls that touch files below FAULT_UNDER (or sockets) are counted in a file that all processes
// of a program share.  At call number FAULT_AT the fault happens:
//
//   kill   the whole process group is killed before the call
//   eio    the call fails with EIO; of sockets the connection is cut
//   short  the call moves only half of what it was asked to
//   full   this call, and all later ones that take room, fail with ENOSPC
//   clock  the clock of the day jumps by FAULT_SHIFT_S seconds, and stays so
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { NONE, KILL, EIO_ONCE, SHORT, FULL, CLOCK };
enum sort { READS, WRITES, GROWS, CHANGES };  // what a call does; the last two move no bytes

static struct shared { atomic_ulong calls; atomic_ulong fired; } *shared;
static enum kind kind;
static unsigned long at;
static long shift_s;
static const char *under;
static size_t under_length;

__attribute__((constructor)) static void begin(void)
{
    static const char *const names[] = {"", "kill", "eio", "short", "full", "clock"};
    const char *text = getenv("FAULT_COUNTER");
    int fd = text ? open(text, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED)
        abort();
    text = getenv("FAULT_KIND");
    for (unsigned i = 0; text && i < sizeof names / sizeof *names; i++)
        if (!strcmp(text, names[i]))
            kind = i;
    text = getenv("FAULT_AT");
    at = text ? strtoul(text, NULL, 10) : 0;
    text = getenv("FAULT_SHIFT_S");
    shift_s = text ? atol(text) : 0;
    under = getenv("FAULT_UNDER");
    under_length = under ? strlen(under) : 0;
    shared = memory;
}

static int is_below(const char *path)
{
    return under && !strncmp(path, under, under_length)
           && (path[under_length] == '/' || !path[under_length]);
}

static int concerns(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return under ? is_below(path) : !strncmp(path, "socket:", 7);
}

// Return 0 to go on, -1 to fail with errno set, 1 to move half.
static int strike(enum sort sort, int fd)
{
    unsigned long call = atomic_fetch_add(&shared->calls, 1) + 1;
    if (kind == NONE || call < at)
        return 0;
    if (kind == FULL) {
        if (sort != WRITES && sort != GROWS)
            return 0;
        atomic_store(&shared->fired, call);
        errno = ENOSPC;
        return -1;
    }
    if (call != at)
        return 0;
    atomic_store(&shared->fired, call);
    if (kind == KILL) {
        kill(0, SIGKILL);
        pause();
    }
    if (kind == EIO_ONCE) {
        if (!under && fd >= 0)
            shutdown(fd, SHUT_RDWR);
        errno = under ? EIO : ECONNRESET;
        return -1;
    }
    return kind == SHORT && (sort == READS || sort == WRITES);
}

#define REAL(name) \
    static typeof(&name) real; \
    if (!real) \
        real = (typeof(&name))dlsym(RTLD_NEXT, #name);

static int looks_at(int fd)
{
    int before = errno, result = shared && concerns(fd);
    errno = before;
    return result;
}

#define MOVES(name, sort, count, half, declared, passed, passed_half) \
    ssize_t name declared \
    { \
        REAL(name) \
        int what = looks_at(fd) ? strike(sort, fd) : 0; \
        if (what < 0) \
            return -1; \
        return what && (count) > 1 ? real passed_half : real passed; \
    }

MOVES(read, READS, n, n / 2, (int fd, void *b, size_t n), (fd, b, n), (fd, b, n / 2))
MOVES(write, WRITES, n, n / 2, (int fd, const void *b, size_t n), (fd, b, n), (fd, b, n / 2))
MOVES(pread, READS, n, n / 2, (int fd, void *b, size_t n, off_t o), (fd, b, n, o), (fd, b, n / 2, o))
MOVES(pread64, READS, n, n / 2, (int fd, void *b, size_t n, off_t o), (fd, b, n, o), (fd, b, n / 2, o))
MOVES(pwrite, WRITES, n, n / 2, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), (fd, b, n / 2, o))
MOVES(pwrite64, WRITES, n, n / 2, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), (fd, b, n / 2, o))
MOVES(readv, READS, n, 1, (int fd, const struct iovec *v, int n), (fd, v, n), (fd, v, n / 2))
MOVES(writev, WRITES, n, 1, (int fd, const struct iovec *v, int n), (fd, v, n), (fd, v, n / 2))
MOVES(preadv, READS, n, 1, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o), (fd, v, n / 2, o))
MOVES(preadv64, READS, n, 1, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o), (fd, v, n / 2, o))
MOVES(pwritev, WRITES, n, 1, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o), (fd, v, n / 2, o))
MOVES(pwritev64, WRITES, n, 1, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o), (fd, v, n / 2, o))
MOVES(preadv64v2, READS, n, 1, (int fd, const struct iovec *v, int n, off_t o, int f), (fd, v, n, o, f), (fd, v, n / 2, o, f))
MOVES(pwritev64v2, WRITES, n, 1, (int fd, const struct iovec *v, int n, off_t o, int f), (fd, v, n, o, f), (fd, v, n / 2, o, f))
MOVES(recv, READS, n, n / 2, (int fd, void *b, size_t n, int f), (fd, b, n, f), (fd, b, n / 2, f))
MOVES(send, WRITES, n, n / 2, (int fd, const void *b, size_t n, int f), (fd, b, n, f), (fd, b, n / 2, f))
MOVES(sendfile, WRITES, n, n / 2, (int fd, int in, off_t *o, size_t n), (fd, in, o, n), (fd, in, o, n / 2))
MOVES(sendfile64, WRITES, n, n / 2, (int fd, int in, off64_t *o, size_t n), (fd, in, o, n), (fd, in, o, n / 2))
MOVES(copy_file_range, WRITES, n, n / 2, (int in, off64_t *a, int fd, off64_t *o, size_t n, unsigned f), (in, a, fd, o, n, f), (in, a, fd, o, n / 2, f))

#define CHANGES_FD(name, sort, declared, passed) \
    int name declared \
    { \
        REAL(name) \
        return looks_at(fd) && strike(sort, fd) < 0 ? -1 : real passed; \
    }

CHANGES_FD(fsync, CHANGES, (int fd), (fd))
CHANGES_FD(fdatasync, CHANGES, (int fd), (fd))
CHANGES_FD(ftruncate, GROWS, (int fd, off_t n), (fd, n))
CHANGES_FD(ftruncate64, GROWS, (int fd, off_t n), (fd, n))

#define CHANGES_PATH(name, sort, path, declared, passed) \
    int name declared \
    { \
        REAL(name) \
        return shared && is_below(path) && strike(sort, -1) < 0 ? -1 : real passed; \
    }

CHANGES_PATH(rename, CHANGES, b, (const char *a, const char *b), (a, b))
CHANGES_PATH(link, CHANGES, b, (const char *a, const char *b), (a, b))
CHANGES_PATH(unlink, CHANGES, a, (const char *a), (a))
CHANGES_PATH(mkdir, GROWS, a, (const char *a, mode_t m), (a, m))

// posix_fallocate gives its error back, and leaves errno alone.
#define ALLOCATES(name) \
    int name(int fd, off_t o, off_t n) \
    { \
        REAL(name) \
        return looks_at(fd) && strike(GROWS, fd) < 0 ? errno : real(fd, o, n); \
    }

ALLOCATES(posix_fallocate)
ALLOCATES(posix_fallocate64)

#define OPENS(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name) \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        enum sort sort = flags & O_CREAT ? CHANGES : READS; \
        return shared && is_below(path) && strike(sort, -1) < 0 ? -1 : real(path, flags, mode); \
    }

OPENS(open)
OPENS(open64)

static long shift(void)
{
    return kind == CLOCK && shared && atomic_load(&shared->fired) ? shift_s : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    REAL(clock_gettime)
    int result = real(clock, now);
    if (!result && clock == CLOCK_REALTIME)
        now->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *now, void *zone)
{
    REAL(gettimeofday)
    int result = real(now, zone);
    if (!result)
        now->tv_sec += shift();
    return result;
}

time_t time(time_t *place)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}
