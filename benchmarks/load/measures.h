/* Measurements for client.c: latency histograms, and the kernel's figures about processes and cores. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BUCKETS 4096

typedef struct {
    long counts[BUCKETS], total;
} histogram; /* 64 buckets per power of two, in tenths of a microsecond: at most 1.6 % wide */

static void count(histogram *latencies, uint64_t nanoseconds) {
    uint64_t value = nanoseconds / 100;
    int power = value < 64 ? 0 : 63 - __builtin_clzll(value) - 5;
    int bucket = power ? power * 64 + ((value >> (power - 1)) & 63) : value;
    latencies->counts[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    latencies->total++;
}

/* In microseconds. */
static double quantile(const histogram *latencies, double share) {
    long rest = share * latencies->total;
    for (int bucket = 0; bucket < BUCKETS; bucket++)
        if ((rest -= latencies->counts[bucket]) < 0) {
            int power = bucket / 64;
            return (power ? (64ull + bucket % 64) << (power - 1) : (uint64_t)bucket) / 10.0;
        }
    return 0;
}

/* CPU time of all threads of a process, in nanoseconds. */
static uint64_t cpu_of(const char *pid) {
    uint64_t sum = 0;
    char path[300];
    snprintf(path, sizeof path, "/proc/%s/task", pid);
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
    return sum;
}

/* Resident memory, in bytes. */
static long memory_of(const char *pid) {
    char path[64];
    long pages = 0;
    snprintf(path, sizeof path, "/proc/%s/statm", pid);
    FILE *stat = fopen(path, "r");
    if (stat && fscanf(stat, "%*d %ld", &pages) != 1) pages = 0;
    if (stat) fclose(stat);
    return pages * sysconf(_SC_PAGESIZE);
}

/* Idle time of a core since boot, in seconds. */
static double idle_of(int core) {
    char line[512], name[16];
    double idle = 0;
    FILE *stat = fopen("/proc/stat", "r");
    snprintf(name, sizeof name, "cpu%d ", core);
    while (stat && fgets(line, sizeof line, stat))
        if (!strncmp(line, name, strlen(name))) sscanf(line, "%*s %*f %*f %*f %lf", &idle);
    if (stat) fclose(stat);
    return idle / sysconf(_SC_CLK_TCK);
}
