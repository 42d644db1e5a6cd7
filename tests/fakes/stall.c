/* A disk that stalls: while the file $STALL_WHILE exists, fsync(2) of a file below $STALL_UNDER does not return.
   As on NFS whose server is gone, only the calling thread waits, and only for that file system. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

int fsync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fsync");
    const char *under = getenv("STALL_UNDER"), *flag = getenv("STALL_WHILE");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (under && flag && length > 0) {
        path[length] = 0;
        while (!strncmp(path, under, strlen(under)) && !access(flag, F_OK)) usleep(20000);
    }
    return next(fd);
}

/* With $STALL_OPEN the disk does not even open: open(2), stat(2), lstat(2), access(2) and opendir(3) below $STALL_UNDER wait. */
static void stall(const char *path) {
    const char *under = getenv("STALL_UNDER"), *flag = getenv("STALL_WHILE");
    if (!getenv("STALL_OPEN") || !under || !flag || strncmp(path, under, strlen(under))) return;
    int (*look)(const char *, int) = dlsym(RTLD_NEXT, "access");
    while (!look(flag, F_OK)) usleep(20000);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        stall(path); \
        return ((int (*)(const char *, int, mode_t))dlsym(RTLD_NEXT, #name))(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define TWO(name, type) \
    int name(const char *path, type second) { \
        stall(path); \
        return ((int (*)(const char *, type))dlsym(RTLD_NEXT, #name))(path, second); \
    }
struct stat;
struct stat64;
TWO(stat, struct stat *)
TWO(stat64, struct stat64 *)
TWO(lstat, struct stat *)
TWO(lstat64, struct stat64 *)
TWO(access, int)

void *opendir(const char *path) {
    stall(path);
    return ((void *(*)(const char *))dlsym(RTLD_NEXT, "opendir"))(path);
}

/* Another machine may write on it, so inotify_init(2) would not tell: it must be looked at. */
int inotify_init1(int flags) {
    (void)flags;
    return -1;
}
