/* All clocks, ahead by what a file says at this moment: for programs that are to live through twenty minutes at once
 * (LD_PRELOAD).
 *
 * Some clients keep deadlines by the time of day, some by the monotonic clock; so both leap together, as they do where time
 * passes. Who sleeps until an instant means one of ours, and the kernel is told its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t ahead(void) {
    static const volatile long *seconds;
    if (seconds == NULL) {
        const char *path = getenv("LEAP_FILE");
        int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
        void *map = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        if (file >= 0)
            close(file);
        if (map == MAP_FAILED)
            abort(); /* or a test of time would pass where none does */
        seconds = map;
    }
    return (time_t)*seconds;
}

static int leaps(clockid_t which) {
    return which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE || which == CLOCK_MONOTONIC ||
           which == CLOCK_MONOTONIC_COARSE || which == CLOCK_MONOTONIC_RAW || which == CLOCK_BOOTTIME;
}

int clock_gettime(clockid_t which, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, which, at);
    if (failed == 0 && leaps(which))
        at->tv_sec += ahead();
    return failed;
}

int clock_nanosleep(clockid_t which, int flags, const struct timespec *until, struct timespec *left) {
    struct timespec real = *until;
    if ((flags & TIMER_ABSTIME) != 0 && leaps(which))
        real.tv_sec -= ahead();
    /* It says what went wrong by its value, the system call by errno. */
    long failed = syscall(SYS_clock_nanosleep, which, flags, &real, left);
    return failed == 0 ? 0 : errno;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    if (failed == 0) {
        at->tv_sec = now.tv_sec;
        at->tv_usec = now.tv_nsec / 1000;
    }
    return failed;
}

int timespec_get(struct timespec *at, int base) {
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, at) == 0 ? base : 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at != NULL)
        *at = now.tv_sec;
    return now.tv_sec;
}
