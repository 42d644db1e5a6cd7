/* The wall clock, faster: for programs that are to live through hours in seconds (LD_PRELOAD).
 *
 * Only the time of day is moved. Monotonic clocks, and with them every timeout, stay true: a client's impatience must
 * not grow with the speed.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static void warp(struct timespec *at) {
    static double from, speed;
    if (speed == 0.0) {
        const char *given_from = getenv("WARP_FROM"), *given_speed = getenv("WARP_SPEED");
        from = given_from ? atof(given_from) : 0.0;
        speed = given_speed ? atof(given_speed) : 1.0;
    }
    double now = from + ((double)at->tv_sec - from + at->tv_nsec / 1e9) * speed;
    at->tv_sec = (time_t)now;
    at->tv_nsec = (long)((now - (double)at->tv_sec) * 1e9);
}

int clock_gettime(clockid_t which, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, which, at);
    if (failed == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        warp(at);
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    if (failed == 0 && at != NULL) {
        at->tv_sec = now.tv_sec;
        at->tv_usec = now.tv_nsec / 1000;
    }
    return failed;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at != NULL)
        *at = now.tv_sec;
    return now.tv_sec;
}
