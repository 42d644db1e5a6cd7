/* A kernel that refuses: what the test writes into the file $LD_FAIL_BY, preloaded into the daemon, decides which call fails with what.

   The file holds lines "CALL ERRNO [PREFIX]", ended by a NUL: each call of that name fails, with a prefix only one whose
   path, or whose descriptor's path, begins with it. It is mapped, so that reading it is no call that could fail.
   Written from the Linux manual pages, section 2: each pair of a call and an error is documented there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BYTES 4096
static const char *rules;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LD_FAIL_BY");
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0) : -1;
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) rules = at;
    if (fd >= 0) syscall(SYS_close, fd);
}

/* The error that a call meets; 0: none. A path or a descriptor (path NULL, fd >= 0), or neither. */
static int refused(const char *call, const char *path, long fd) {
    if (!rules || !*rules) return 0;
    char text[BYTES + 1], name[64], prefix[PATH_MAX], link[64], own[PATH_MAX];
    memcpy(text, rules, BYTES);
    text[BYTES] = 0;
    for (char *line = text, *next; *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0; else next = line + strlen(line);
        int number, fields = sscanf(line, "%63s %d %4095s", name, &number, prefix);
        if (fields < 2 || strcmp(name, call)) continue;
        if (fields == 2) return number;
        if (!path && fd >= 0) {
            snprintf(link, sizeof link, "/proc/self/fd/%ld", fd);
            long length = syscall(SYS_readlinkat, AT_FDCWD, link, own, sizeof own - 1);
            if (length > 0) { own[length] = 0; path = own; }
        }
        if (path && !strncmp(path, prefix, strlen(prefix))) return number;
    }
    return 0;
}

#define NEXT(name) ((long (*)(long, long, long, long, long, long))dlsym(RTLD_NEXT, name))
/* All arguments are words in registers, so that one shape does for all. The compiler knows the names by other types: ours are
   other names for it, and the same for the linker. */
#define AS(ours, symbol, call, path, fd) \
    long ours(long a, long b, long c, long d, long e, long f) __asm__(#symbol); \
    long ours(long a, long b, long c, long d, long e, long f) { \
        int error = refused(call, path, fd); \
        if (error) { errno = error; return -1; } \
        return NEXT(#symbol)(a, b, c, d, e, f); \
    }
#define FIRST (const char *)a
#define SECOND (const char *)b
AS(a1, open, "open", FIRST, -1)
AS(a2, open64, "open", FIRST, -1)
AS(a3, openat, "open", SECOND, -1)
AS(a4, openat64, "open", SECOND, -1)
AS(b1, write, "write", NULL, a)
AS(b2, pwrite64, "write", NULL, a)
AS(b3, read, "read", NULL, a)
AS(b4, fsync, "fsync", NULL, a)
AS(b5, fdatasync, "fsync", NULL, a)
AS(b6, ftruncate64, "truncate", NULL, a)
AS(b7, ftruncate, "truncate", NULL, a)
AS(b8, fchmod, "chmod", NULL, a)
AS(b9, fchown, "chown", NULL, a)
AS(c1, rename, "rename", SECOND, -1)
AS(c2, renameat, "rename", (const char *)d, -1)
AS(c3, link, "link", SECOND, -1)
AS(c4, linkat, "link", (const char *)d, -1)
AS(c5, unlink, "unlink", FIRST, -1)
AS(c6, unlinkat, "unlink", SECOND, -1)
AS(c7, stat64, "stat", FIRST, -1)
AS(c8, stat, "stat", FIRST, -1)
AS(c9, lstat64, "stat", FIRST, -1)
AS(d1, lstat, "stat", FIRST, -1)
AS(d2, fstat64, "fstat", NULL, a)
AS(d3, fstat, "fstat", NULL, a)
AS(d4, fstatat64, "stat", SECOND, -1)
AS(d5, flock, "flock", NULL, a)
AS(e1, socket, "socket", NULL, -1)
AS(e2, connect, "connect", NULL, -1)
AS(e3, accept, "accept", NULL, -1)
AS(e4, accept4, "accept", NULL, -1)
AS(e5, setsockopt, "setsockopt", NULL, -1)
AS(e6, getsockopt, "getsockopt", NULL, -1)
AS(e7, getpeername, "getpeername", NULL, -1)
AS(e8, getsockname, "getsockname", NULL, -1)
AS(f1, send, "send", NULL, -1)
AS(f2, sendto, "send", NULL, -1)
AS(f3, sendmsg, "sendmsg", NULL, -1)
AS(f4, recv, "recv", NULL, -1)
AS(f5, recvfrom, "recv", NULL, -1)
AS(f6, recvmsg, "recvmsg", NULL, -1)
AS(f7, shutdown, "shutdown", NULL, -1)
AS(g1, epoll_ctl, "epoll_ctl", NULL, -1)
AS(g2, memfd_create, "memfd_create", NULL, -1)
AS(g3, getrandom, "getrandom", NULL, -1)
AS(g4, pipe2, "pipe", NULL, -1)
AS(g5, inotify_add_watch, "inotify_add_watch", SECOND, -1)
AS(g6, fork, "fork", NULL, -1)
AS(g7, fallocate64, "fallocate", NULL, a)
AS(g8, writev, "writev", NULL, a)
AS(g9, socketpair, "socketpair", NULL, -1)
AS(h1, fcntl64, "fcntl", NULL, a)
AS(h2, fcntl, "fcntl", NULL, a)
AS(h3, mkdir, "mkdir", FIRST, -1)
AS(h5, timerfd_settime, "timerfd_settime", NULL, -1)

/* These return otherwise: the error itself, and no directory. */
int pthread_create(void *a, const void *b, void *(*c)(void *), void *d) {
    int error = refused("pthread_create", NULL, -1);
    if (error) return error;
    return ((int (*)(void *, const void *, void *(*)(void *), void *))dlsym(RTLD_NEXT, "pthread_create"))(a, b, c, d);
}

void *opendir(const char *path) {
    int error = refused("open", path, -1);
    if (error) { errno = error; return NULL; }
    return ((void *(*)(const char *))dlsym(RTLD_NEXT, "opendir"))(path);
}
