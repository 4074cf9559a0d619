/* Loads a proxy and tells what that cost it: one thread, epoll, HTTP/1.1 with keep-alive.
 *
 *     client PORT CONNECTIONS BODY_BYTES TOKENS WARM_UP_SECONDS SECONDS [PID...]
 *
 * TOKENS 0: every connection sends its next request once its reply is complete. TOKENS above 0: every connection opens
 * one stream, evenly spread over half of the warm-up, and reads it. After the warm-up it measures for SECONDS and prints
 * one JSON object; CPU time is that of the threads of all PIDs, latencies are in microseconds. What the engine wrote
 * between two @ is an event's time of birth. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUCKETS 4096

typedef struct {
    long counts[BUCKETS], total;
} histogram; /* 64 buckets for each power of two of tenths of a microsecond: 1.6 % wide at most */

typedef struct {
    int fd;
    size_t to_send;
    uint64_t began;
    char head[4096];
    size_t head_length;
    long body_left; /* -1: the head is not complete; of a stream nothing but the head is followed */
    uint64_t birth; /* the digits of a time that have been read so far */
    int in_birth;
} connection;

static int loop, is_streaming;
static long failed, completed, events, reads;
static struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {0}};
static char *request;
static size_t request_length;
static uint64_t from = UINT64_MAX, until = UINT64_MAX; /* what is measured */
static histogram latencies;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void count(uint64_t nanoseconds) {
    uint64_t value = nanoseconds / 100;
    int power = value < 64 ? 0 : 63 - __builtin_clzll(value) - 5;
    int bucket = power ? power * 64 + ((value >> (power - 1)) & 63) : value;
    latencies.counts[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    latencies.total++;
}

static double quantile(double share) {
    long rest = share * latencies.total;
    for (int bucket = 0; bucket < BUCKETS; bucket++)
        if ((rest -= latencies.counts[bucket]) < 0) {
            int power = bucket / 64;
            return (power ? (64ull + bucket % 64) << (power - 1) : (uint64_t)bucket) / 10.0;
        }
    return 0;
}

/* CPU time in nanoseconds. */
static uint64_t cpu_of(int pids, char **pid) {
    uint64_t sum = 0;
    for (int i = 0; i < pids; i++) {
        char path[300];
        snprintf(path, sizeof path, "/proc/%s/task", pid[i]);
        DIR *threads = opendir(path);
        for (struct dirent *thread; threads && (thread = readdir(threads));) {
            unsigned long long spent;
            char file[600];
            snprintf(file, sizeof file, "%s/%s/schedstat", path, thread->d_name);
            FILE *stat = thread->d_name[0] == '.' ? NULL : fopen(file, "r");
            if (stat && fscanf(stat, "%llu", &spent) == 1) sum += spent;
            if (stat) fclose(stat);
        }
        if (threads) closedir(threads);
    }
    return sum;
}

static long memory_of(int pids, char **pid) {
    long sum = 0;
    for (int i = 0; i < pids; i++) {
        char path[64];
        long pages = 0;
        snprintf(path, sizeof path, "/proc/%s/statm", pid[i]);
        FILE *stat = fopen(path, "r");
        if (stat && fscanf(stat, "%*d %ld", &pages) == 1) sum += pages * sysconf(_SC_PAGESIZE);
        if (stat) fclose(stat);
    }
    return sum;
}

/* A request as the OpenAI library for Python sends it: 13 fields, the messages before the model's name. */
static void make_request(int port, size_t body_bytes, long tokens) {
    char *body = malloc(body_bytes + 4096);
    size_t length = sprintf(body, "{\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"}");
    for (int turn = 0; length + 200 < body_bytes; turn++) {
        size_t words = (body_bytes - length - 160) < 1400 ? (body_bytes - length - 160) / 28 : 50;
        length += sprintf(body + length, ",{\"role\":\"%s\",\"content\":\"", turn % 2 ? "assistant" : "user");
        while (words-- > 0) length += sprintf(body + length, "and the \\\"river\\\" went on,\\n ");
        length += sprintf(body + length, "\"}");
        if (body_bytes - length < 400) break;
    }
    length += sprintf(body + length, "],\"model\":\"m\",\"max_tokens\":%ld%s", tokens, tokens ? ",\"stream\":true" : "");
    while (length + 1 < body_bytes) body[length++] = ' ';
    body[length++] = '}';
    request = malloc(length + 1024);
    request_length = sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: gzip, deflate\r\n"
        "Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 3.0.0\r\n"
        "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 3.0.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\n"
        "X-Stainless-Runtime: CPython\r\nAuthorization: Bearer sk-0123456789\r\nContent-Length: %zu\r\n\r\n", port, length);
    memcpy(request + request_length, body, length);
    request_length += length;
    free(body);
}

static void send_rest(connection *c) {
    ssize_t sent = send(c->fd, request + request_length - c->to_send, c->to_send, MSG_NOSIGNAL);
    if (sent > 0) c->to_send -= sent;
    struct epoll_event wanted = {EPOLLIN | (c->to_send ? EPOLLOUT : 0), {.ptr = c}};
    epoll_ctl(loop, EPOLL_CTL_MOD, c->fd, &wanted);
}

static void begin(connection *c) {
    c->began = now();
    c->to_send = request_length;
    c->head_length = c->in_birth = 0;
    c->body_left = -1;
    ssize_t sent = send(c->fd, request, request_length, MSG_NOSIGNAL);
    if (sent > 0) c->to_send -= sent;
    if (c->to_send) send_rest(c);
}

static void open_connection(connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        perror("client: cannot connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event wanted = {EPOLLIN, {.ptr = c}};
    epoll_ctl(loop, EPOLL_CTL_ADD, c->fd, &wanted);
    begin(c);
}

static void fail(connection *c) {
    failed++;
    close(c->fd);
    if (failed > 1000) {
        fprintf(stderr, "client: more than 1000 failures, the last reply began with: %.80s\n", c->head);
        exit(1);
    }
    open_connection(c);
}

static void read_events(connection *c, const char *bytes, size_t length, uint64_t moment) {
    for (const char *at = bytes, *end = bytes + length; at < end; at++) {
        if (c->in_birth && *at != '@') {
            c->birth = c->birth * 10 + (*at - '0');
            continue;
        }
        if (!c->in_birth && !(at = memchr(at, '@', end - at))) return;
        if (c->in_birth && moment >= from && moment < until) {
            events++;
            count(moment - c->birth);
        }
        c->in_birth = !c->in_birth;
        c->birth = 0;
    }
}

/* Takes what belongs to the head, which ends in `head` with a zero; returns how many bytes that was, or -1. */
static ssize_t read_head(connection *c, const char *bytes, size_t length) {
    size_t before = c->head_length, room = sizeof c->head - 1 - before, taken = length < room ? length : room;
    memcpy(c->head + before, bytes, taken);
    c->head[c->head_length += taken] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) return c->head_length < sizeof c->head - 1 ? (ssize_t)taken : -1;
    const char *field = strcasestr(c->head, "\r\ncontent-length:");
    if (strncmp(c->head, "HTTP/1.1 200", 12) || (!is_streaming && !field)) return -1;
    c->body_left = is_streaming ? 0 : atol(field + 17);
    return end + 4 - c->head - before;
}

static void receive(connection *c) {
    static char bytes[65536];
    ssize_t length = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT), taken = 0;
    if (length < 0 && errno == EAGAIN) return;
    uint64_t moment = now();
    if (length <= 0) return fail(c);
    if (c->body_left < 0 && (taken = read_head(c, bytes, length)) < 0) return fail(c);
    if (is_streaming) {
        if (moment >= from && moment < until) reads++;
        return read_events(c, bytes + taken, length - taken, moment);
    }
    if (c->body_left < 0 || (c->body_left -= length - taken) > 0) return;
    if (moment >= from && moment < until) {
        completed++;
        count(moment - c->began);
    }
    begin(c);
}

/* Serves the connections until `moment`; opens the first `wanted` of them evenly until `opened_by`. */
static void run_until(uint64_t moment, connection *connections, int wanted, int *opened, uint64_t began, uint64_t opened_by) {
    struct epoll_event ready[256];
    for (uint64_t time; (time = now()) < moment;) {
        while (*opened < wanted && time >= began + (opened_by - began) / wanted * *opened) open_connection(&connections[(*opened)++]);
        int count = epoll_wait(loop, ready, 256, *opened < wanted ? 1 : (int)((moment - time) / 1000000) + 1);
        for (int i = 0; i < count; i++) {
            connection *c = ready[i].data.ptr;
            if (ready[i].events & EPOLLOUT && c->to_send) send_rest(c);
            if (ready[i].events & ~EPOLLOUT) receive(c);
        }
    }
}

int main(int arguments, char **argument) {
    if (arguments < 7) {
        fprintf(stderr, "usage: client PORT CONNECTIONS BODY_BYTES TOKENS WARM_UP_SECONDS SECONDS [PID...]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int port = atoi(argument[1]), wanted = atoi(argument[2]), opened = 0, pids = arguments - 7;
    double warm_up = atof(argument[5]), seconds = atof(argument[6]);
    is_streaming = atol(argument[4]) > 0;
    make_request(port, atol(argument[3]), atol(argument[4]));
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    loop = epoll_create1(0);
    connection *connections = calloc(wanted, sizeof *connections);

    uint64_t began = now(), warm = began + (uint64_t)(warm_up * 1e9);
    run_until(warm, connections, wanted, &opened, began, began + (is_streaming ? (warm - began) / 2 : 0));
    uint64_t cpu = cpu_of(pids, argument + 7);
    from = now();
    until = from + (uint64_t)(seconds * 1e9);
    run_until(until, connections, wanted, &opened, began, began);
    double measured = (now() - from) / 1e9;
    cpu = cpu_of(pids, argument + 7) - cpu;
    printf("{\"seconds\": %.3f, \"requests\": %ld, \"events\": %ld, \"reads\": %ld, \"failed\": %ld, \"cpu_us\": %.1f, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f, \"memory_bytes\": %ld}\n", measured, completed, events, reads, failed,
           cpu / 1e3, quantile(.5), quantile(.99), memory_of(pids, argument + 7));
}
