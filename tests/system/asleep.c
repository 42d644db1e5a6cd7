/* A machine that sleeps, or that its hypervisor stops: for the daemon (LD_PRELOAD).
 *
 * The file named by LD_ASLEEP holds two doubles: by how many seconds CLOCK_BOOTTIME and the wall clock are ahead of this
 * machine's own. When they change, timers of timerfd_create(2) behave as the kernel's do: those on CLOCK_BOOTTIME are
 * over if their time has passed, and those that are cancelled by a step of the clock become readable. CLOCK_MONOTONIC
 * and with it every timer of an event loop stands still meanwhile, as it does. The kernel's clock is not synchronised.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

#define MOST 16
static volatile double *ahead; /* boot time, wall clock */
static struct { int fd, flags; clockid_t clock; struct itimerspec wanted; } timers[MOST];
static int known;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static volatile double *shared(void) {
    if (ahead == NULL) {
        int fd = open(getenv("LD_ASLEEP"), O_RDONLY | O_CLOEXEC);
        ahead = mmap(NULL, 16, PROT_READ, MAP_SHARED, fd, 0);
        close(fd);
    }
    return ahead;
}

static void add(struct timespec *at, double seconds) {
    double sum = (double)at->tv_nsec / 1e9 + seconds;
    long whole = (long)sum - (sum < (double)(long)sum);
    at->tv_sec += whole;
    at->tv_nsec = (long)((sum - (double)whole) * 1e9);
}

int clock_gettime(clockid_t which, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, which, at);
    if (failed == 0 && which == CLOCK_BOOTTIME)
        add(at, shared()[0]);
    if (failed == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        add(at, shared()[1]);
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at != NULL)
        *at = now.tv_sec;
    return now.tv_sec;
}

int adjtimex(struct timex *buf) {
    int state = (int)syscall(SYS_adjtimex, buf);
    if (state >= 0)
        buf->status |= STA_UNSYNC;
    return state < 0 ? state : TIME_ERROR;
}

static int armed(int i) {
    struct itimerspec real = timers[i].wanted;
    if (timers[i].clock == CLOCK_BOOTTIME && (real.it_value.tv_sec || real.it_value.tv_nsec)) {
        add(&real.it_value, -shared()[0]);
        if (real.it_value.tv_sec < 0 || (real.it_value.tv_sec == 0 && real.it_value.tv_nsec == 0)) {
            real.it_value.tv_sec = 0;
            real.it_value.tv_nsec = 1;
        }
    }
    return (int)syscall(SYS_timerfd_settime, timers[i].fd, timers[i].flags, &real, NULL);
}

static void *kernel(void *unused) {
    (void)unused;
    double boot = shared()[0], wall = shared()[1];
    for (;;) {
        struct timespec nap = {0, 5000000}, at_once = {0, 1};
        syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &nap, NULL);
        if (shared()[0] == boot && shared()[1] == wall)
            continue;
        boot = shared()[0], wall = shared()[1];
        pthread_mutex_lock(&lock);
        for (int i = 0; i < known; i++) {
            if (timers[i].clock == CLOCK_BOOTTIME)
                armed(i);
            else if (timers[i].flags & TFD_TIMER_CANCEL_ON_SET) {
                struct itimerspec now = {{0, 0}, at_once};
                syscall(SYS_timerfd_settime, timers[i].fd, 0, &now, NULL);
            }
        }
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

int timerfd_create(clockid_t clock, int flags) {
    static pthread_t thread;
    int fd = (int)syscall(SYS_timerfd_create, clock, flags);
    pthread_mutex_lock(&lock);
    if (known == 0)
        pthread_create(&thread, NULL, kernel, NULL);
    if (fd >= 0 && known < MOST) {
        timers[known].fd = fd;
        timers[known++].clock = clock;
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old) {
    (void)old;
    int result = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < known; i++)
        if (timers[i].fd == fd) {
            timers[i].flags = flags;
            timers[i].wanted = *new;
            result = armed(i);
        }
    pthread_mutex_unlock(&lock);
    return result;
}
