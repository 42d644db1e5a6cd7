/* A disk that stalls: while the file $STALL_WHILE exists, fsync(2) of a file below $STALL_UNDER does not return.
   As on NFS whose server is gone, only the calling thread waits, and only for that file system. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
