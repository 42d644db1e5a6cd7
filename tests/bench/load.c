/* The load of `make bench`: one thread, epoll, raw sockets, so that it costs less than any server it measures.
 *
 *   load -h ADDRESS -p PORT -k ec2|get [-t PATH] [-H 'Name: value'] [-n ROLE] [-u] and one of
 *        -c CONCURRENCY -s SECONDS [-m MOST]     closed loop: each client asks again when it has its answer
 *        -b BURST -r ROUNDS                      that many at the same instant, several times
 *        -q RATE -s SECONDS                      open loop: so many a second, timed from when each was due
 *        and any of [-f FILE [-x]] [-d MICROSECONDS] [-w WAITING] [-K]
 *
 * Each request is on a connection of its own. A sequence of `ec2` is botocore's: PUT token, GET role list, GET document;
 * of `get` it is one GET of PATH. With -u no two requests are alike: each has another user agent, another id and another
 * query. A connection is made, the request sent once it stands, the answer read until its body is whole: what clients do.
 *
 * -f  the heads of FILE instead, of a program drawn anew for each sequence: each head is a line `%% NAME`, three in a row
 *     of one name a sequence (`get`: one), then its lines. {host} {token} {role} {path} are filled in, {id} and {n} differ
 *     in each request.
 * -x  bends them: the fields in any order, their names in any case, one more field now and then.
 * -d  so long after the connection stands the request is sent: an interpreter needs some hundred microseconds.
 * -w  beside the load so many connections wait and send nothing; one that is closed is made anew.
 * -K  a connection that the server leaves open has the next request of the sequence.
 *
 * Prints one line of JSON: {"sequences", "errors", "error", "seconds", "sequence_ms": {quantiles}, "request_ms": {...}}.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER = 16384, REQUEST = 4096, TOKEN = 1024, NAME = 256, HEADERS = 8, HEADS = 96, LINES = 24 };
#define ROLES "/latest/meta-data/iam/security-credentials/"
#define PATIENCE 10.0

struct client {
    int fd, step, sent, length, have, program, waits;
    double began, asked, due;
    char request[REQUEST], answer[ANSWER], token[TOKEN], role[NAME];
};

struct samples {
    double *seconds;
    size_t count, room;
};

static struct sockaddr_in server;
static char host[64];
static int unlike, single, poll_fd, open_now, headers;
static const char *path = "/", *header[HEADERS];
static struct client *clients;
static int *idle, idles;
static struct samples sequences, requests;
static long errors, number;
static char fault[256];
static char *heads[HEADS][LINES]; /* lines of a head, in threes or ones; NULL ends them */
static int programs, bent, keep, waiting;
static double delay;
static struct client **delayed; /* a ring: the pause is the same for all, so whoever comes first is due first */
static int first_delayed, count_delayed, places;
static uint64_t seed = 88172645463325252ull;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void add(struct samples *all, double seconds) {
    if (all->count == all->room) {
        all->room = all->room ? 2 * all->room : 4096;
        all->seconds = realloc(all->seconds, all->room * sizeof *all->seconds);
        if (!all->seconds) die("realloc");
    }
    all->seconds[all->count++] = seconds;
}

static void finish(struct client *c) {
    idle[idles++] = (int)(c - clients);
    open_now--;
}

static void fail(struct client *c, const char *why) {
    if (!fault[0]) {
        snprintf(fault, sizeof fault, "step %d: %s", c->step, why);
        for (char *p = fault; *p; p++)
            if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ') *p = ' ';
    }
    errors++;
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    finish(c);
}

static unsigned drawn(unsigned below) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (unsigned)((seed >> 11) % below);
}

static void read_heads(const char *file) {
    static char text[65536];
    FILE *in = fopen(file, "r");
    if (!in) die(file);
    size_t size = fread(text, 1, sizeof text - 1, in);
    fclose(in);
    text[size] = 0;
    int head = -1, line = 0;
    for (char *one = strtok(text, "\n"); one; one = strtok(NULL, "\n")) {
        if (!strncmp(one, "%% ", 3)) head++, line = 0;
        else if (head >= 0 && line < LINES - 1 && head < HEADS) heads[head][line++] = one;
        else if (one[0] != '#') { fprintf(stderr, "-f: too many heads or lines\n"); exit(2); }
    }
    programs = (head + 1) / (single ? 1 : 3);
    if (!programs) { fprintf(stderr, "-f: expected heads, got none\n"); exit(2); }
}

/* One line of a head, with what is to be filled in. */
static int fill(struct client *c, char *to, int room, const char *line, int any_case) {
    int n = 0, name = any_case ? 1 + (int)drawn(3) : 0;
    for (const char *p = line; *p && n < room - 64; p++) {
        if (*p == ':') name = 0;
        if (*p != '{') {
            int letter = (unsigned char)*p, first = p == line || p[-1] == '-';
            if (name == 1 || (name == 2 && !first)) letter = letter >= 'A' && letter <= 'Z' ? letter + 32 : letter;
            if (name == 3 || (name == 2 && first)) letter = letter >= 'a' && letter <= 'z' ? letter - 32 : letter;
            to[n++] = (char)letter;
            continue;
        }
        const char *end = strchr(p, '}');
        if (!strncmp(p, "{host}", 6)) n += snprintf(to + n, (size_t)(room - n), "%s", host);
        else if (!strncmp(p, "{token}", 7)) n += snprintf(to + n, (size_t)(room - n), "%s", c->token);
        else if (!strncmp(p, "{role}", 6)) n += snprintf(to + n, (size_t)(room - n), "%s", c->role);
        else if (!strncmp(p, "{path}", 6)) n += snprintf(to + n, (size_t)(room - n), "%s", path);
        else if (!strncmp(p, "{n}", 3)) n += snprintf(to + n, (size_t)(room - n), "%ld", number);
        else if (!strncmp(p, "{id}", 4))
            n += snprintf(to + n, (size_t)(room - n), "%08x-%04x-4%03x-a%03x-%012lx", drawn(~0u), drawn(65536), drawn(4096),
                          drawn(4096), (unsigned long)number & 0xffffffffffff);
        else { fprintf(stderr, "-f: what is %s?\n", p); exit(2); }
        p = end;
    }
    return n;
}

static void compose_of_file(struct client *c) {
    char **lines = heads[single ? c->program : 3 * c->program + c->step];
    int order[LINES + HEADERS + 1], count = 0, n = 0;
    const char *all[LINES + HEADERS + 1];
    static char odd[64];
    number++;
    for (; lines[count]; count++) all[count] = lines[count];
    for (int i = 0; i < headers; i++) all[count++] = header[i];
    if (bent && !drawn(4)) {
        snprintf(odd, sizeof odd, "X-Trace-%x: %x", drawn(4096), drawn(~0u));
        all[count++] = odd;
    }
    for (int i = 0; i < count; i++) order[i] = i;
    for (int i = count - 1; bent && i > 1; i--) {
        int with = 1 + (int)drawn((unsigned)i), moved = order[i]; /* never the first: that is the request's line */
        order[i] = order[with], order[with] = moved;
    }
    for (int i = 0; i < count; i++) {
        n += fill(c, c->request + n, REQUEST - n, all[order[i]], bent && i > 0);
        n += snprintf(c->request + n, (size_t)(REQUEST - n), "\r\n");
    }
    n += snprintf(c->request + n, (size_t)(REQUEST - n), "\r\n");
    c->length = n;
}

/* Write the request of the present step. */
static void compose(struct client *c) {
    if (programs) {
        compose_of_file(c);
        return;
    }
    char query[48] = "", own[192] = "User-Agent: Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux md/arch#x86_64\r\n";
    if (unlike) {
        number++;
        if (single || c->step) snprintf(query, sizeof query, "?n=%ld", number);
        snprintf(own, sizeof own, "User-Agent: program-%ld/1.%ld lang/python\r\namz-sdk-invocation-id: %016lx\r\n", number,
                 number % 97, (unsigned long)number * 2654435761ul);
    }
    int n;
    if (single) {
        n = snprintf(c->request, REQUEST, "GET %s%s HTTP/1.1\r\nHost: %s\r\n%sAccept-Encoding: identity\r\n", path, query, host, own);
        for (int i = 0; i < headers; i++) n += snprintf(c->request + n, (size_t)(REQUEST - n), "%s\r\n", header[i]);
        n += snprintf(c->request + n, (size_t)(REQUEST - n), "\r\n");
    } else if (c->step == 0) {
        n = snprintf(c->request, REQUEST,
                     "PUT /latest/api/token HTTP/1.1\r\nHost: %s\r\n%sAccept-Encoding: identity\r\n"
                     "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 0\r\n\r\n", host, own);
    } else {
        n = snprintf(c->request, REQUEST,
                     "GET " ROLES "%s%s HTTP/1.1\r\nHost: %s\r\n%sAccept-Encoding: identity\r\n"
                     "x-aws-ec2-metadata-token: %s\r\n\r\n", c->step == 2 ? c->role : "", query, host, own, c->token);
    }
    if (n >= REQUEST) { fprintf(stderr, "the request is too long\n"); exit(1); }
    c->length = n;
}

static void dial(struct client *c) {
    compose(c);
    c->sent = c->have = 0;
    c->waits = delay > 0;
    c->asked = now();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) {
        fail(c, strerror(errno));
        return;
    }
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
}

static void start(double due) {
    struct client *c = &clients[idle[--idles]];
    open_now++;
    c->began = due;
    c->step = 0;
    if (programs) c->program = (int)drawn((unsigned)programs);
    dial(c);
}

/* The body of a whole answer; NULL: more is to come. */
static char *whole(struct client *c, int ended, long *size) {
    c->answer[c->have] = 0;
    char *body = strstr(c->answer, "\r\n\r\n");
    if (!body) return NULL;
    char *length = strcasestr(c->answer, "\r\ncontent-length:");
    body += 4;
    *size = c->have - (body - c->answer);
    if (length && length < body) return *size >= atol(length + 17) ? body : NULL;
    return ended ? body : NULL;
}

/* Ask on: on the same connection, if that is still there. */
static void go_on(struct client *c, int fd) {
    if (fd < 0) {
        dial(c);
        return;
    }
    compose(c);
    c->sent = c->have = 0;
    c->asked = now();
    c->fd = fd;
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
}

static void next(struct client *c, const char *body, long size) {
    char *closes = strcasestr(c->answer, "\r\nconnection: close");
    int fd = keep && c->step < 2 && !(closes && closes < body) ? c->fd : -1;
    if (fd < 0) close(c->fd);
    c->fd = -1;
    double t = now();
    if (strncmp(c->answer, "HTTP/1.1 200", 12)) {
        c->answer[80] = 0;
        if (fd >= 0) close(fd);
        fail(c, c->answer);
        return;
    }
    add(&requests, t - c->asked);
    if (!single && c->step < 2) {
        char *to = c->step ? c->role : c->token;
        long room = c->step ? NAME : TOKEN;
        while (size && (body[size - 1] == '\n' || body[size - 1] == '\r')) size--;
        if (size >= room) { fail(c, "too long an answer"); return; }
        memcpy(to, body, (size_t)size);
        to[size] = 0;
        c->step++;
        go_on(c, fd);
        return;
    }
    if (fd >= 0) close(fd);
    add(&sequences, t - c->began);
    finish(c);
}

static void hold(struct client *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    connect(c->fd, (struct sockaddr *)&server, sizeof server);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
}

static void ready(struct client *c, uint32_t events) {
    if (c >= clients + places) { /* it only waits */
        close(c->fd);
        hold(c);
        return;
    }
    if (c->sent < c->length) {
        if (c->waits && !(events & (EPOLLERR | EPOLLHUP))) {
            struct epoll_event e = {.events = 0, .data.ptr = c};
            if (epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
            c->due = now() + delay;
            delayed[(first_delayed + count_delayed++) % (2 * places)] = c;
            return;
        }
        ssize_t n = send(c->fd, c->request + c->sent, (size_t)(c->length - c->sent), MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) { fail(c, strerror(errno)); return; }
        if (n > 0) c->sent += (int)n;
        if (c->sent == c->length) {
            struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
            if (epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
        }
        return;
    }
    ssize_t n = recv(c->fd, c->answer + c->have, (size_t)(ANSWER - 1 - c->have), 0);
    if (n < 0) {
        if (errno != EAGAIN) fail(c, strerror(errno));
        return;
    }
    c->have += (int)n;
    long size = 0;
    char *body = whole(c, n == 0, &size);
    if (body) next(c, body, size);
    else if (n == 0) fail(c, c->have ? "the answer was cut" : "closed without an answer");
}

static void turn(double until) {
    static struct epoll_event events[256];
    if (count_delayed && delayed[first_delayed]->due < until) until = delayed[first_delayed]->due;
    double left = until - now();
    struct timespec wait = {.tv_sec = (time_t)(left > 0 ? left : 0)};
    wait.tv_nsec = (long)((left > 0 ? left - (double)wait.tv_sec : 0) * 1e9);
    int n = epoll_pwait2(poll_fd, events, 256, &wait, NULL);
    if (n < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < n; i++) ready(events[i].data.ptr, events[i].events);
    while (count_delayed && delayed[first_delayed]->due <= now()) {
        struct client *c = delayed[first_delayed];
        first_delayed = (first_delayed + 1) % (2 * places);
        count_delayed--;
        if (c->fd < 0 || !c->waits) continue; /* it has failed meanwhile */
        c->waits = 0;
        ready(c, EPOLLOUT);
        if (c->fd >= 0 && c->sent < c->length) {
            struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
            if (epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
        }
    }
}

static void drain(void) {
    double end = now() + PATIENCE;
    while (open_now && now() < end) turn(end);
    errors += open_now; /* whoever has no answer by now */
    if (open_now && !fault[0]) snprintf(fault, sizeof fault, "%d without an answer after %.0f s", open_now, PATIENCE);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void tell(const char *name, struct samples *all) {
    static const struct { const char *name; double at; } marks[] = {
        {"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1.0}};
    qsort(all->seconds, all->count, sizeof *all->seconds, ascending);
    printf(", \"%s\": {", name);
    for (size_t i = 0; all->count && i < sizeof marks / sizeof *marks; i++) {
        size_t at = (size_t)(marks[i].at * (double)all->count);
        if (at >= all->count) at = all->count - 1;
        printf("%s\"%s\": %.3f", i ? ", " : "", marks[i].name, 1000 * all->seconds[at]);
    }
    printf("}");
}

int main(int argc, char **argv) {
    int concurrency = 1, burst = 0, rounds = 5, option, port = 80;
    const char *file = NULL;
    long most = 0;
    double seconds = 5, rate = 0, busy = 0;
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    while ((option = getopt(argc, argv, "h:p:k:t:H:uc:s:m:b:r:q:f:xd:w:K")) != -1) switch (option) {
        case 'h': if (!inet_aton(optarg, &server.sin_addr)) { fprintf(stderr, "-h: expected an IPv4 address\n"); return 2; } break;
        case 'p': port = atoi(optarg); break;
        case 'k': single = !strcmp(optarg, "get"); break;
        case 't': path = optarg; break;
        case 'H': if (headers < HEADERS) header[headers++] = optarg; break;
        case 'u': unlike = 1; break;
        case 'c': concurrency = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'm': most = atol(optarg); break;
        case 'b': burst = atoi(optarg); break;
        case 'r': rounds = atoi(optarg); break;
        case 'q': rate = atof(optarg); break;
        case 'f': file = optarg; break;
        case 'x': bent = 1; break;
        case 'd': delay = atof(optarg) / 1e6; break;
        case 'w': waiting = atoi(optarg); break;
        case 'K': keep = 1; break;
        default: return 2;
    }
    server.sin_port = htons((uint16_t)port);
    snprintf(host, sizeof host, "%s:%d", inet_ntoa(server.sin_addr), port);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    places = burst ? burst : rate > 0 ? 8192 : concurrency;
    clients = calloc((size_t)(places + waiting), sizeof *clients);
    idle = calloc((size_t)places, sizeof *idle);
    delayed = calloc((size_t)(2 * places), sizeof *delayed);
    if (!clients || !idle || !delayed || poll_fd < 0) die("start");
    for (idles = 0; idles < places; idles++) idle[idles] = idles;
    number = (long)getpid() << 32; /* unlike those of other runs too */
    seed ^= (uint64_t)number;
    if (file) read_heads(file);
    for (int i = 0; i < waiting; i++) hold(&clients[places + i]);

    double began = now();
    if (burst) {
        for (int i = 0; i < rounds; i++) {
            usleep(200000);
            double t = now();
            for (int i = 0; i < burst && idles; i++) start(t);
            drain();
            busy += now() - t;
        }
    } else if (rate > 0) {
        double due = began;
        while (due < began + seconds) {
            for (; due <= now() && idles; due += 1 / rate) start(due);
            turn(due);
        }
        drain();
        busy = now() - began;
    } else {
        long begun = 0;
        for (double end = began + seconds; now() < end && (!most || begun < most);) {
            for (int i = idles; i > 0 && (!most || begun < most); i--) {
                start(now());
                begun++;
            }
            turn(end);
        }
        drain();
        busy = now() - began;
    }
    printf("{\"sequences\": %zu, \"requests\": %zu, \"errors\": %ld, \"error\": \"%s\", \"seconds\": %.4f", sequences.count,
           requests.count, errors, fault, busy);
    tell("sequence_ms", &sequences);
    tell("request_ms", &requests);
    printf("}\n");
    return 0;
}
