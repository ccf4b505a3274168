/* Loaded before the C library (LD_PRELOAD): moves the wall clock of one process by the nanoseconds that stand in the file
   $LOCKSTEP_KIT_CLOCK, at once and again whenever they change. The monotonic clocks stay, as when a machine's clock is set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LOCKSTEP_KIT_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *map = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (map != MAP_FAILED) offset = map;
}

static struct timespec moved(struct timespec t, int64_t by) {
    int64_t ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec + by;
    if (ns < 0) ns = 0;
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

static int64_t by(void) { return offset ? *offset : 0; }

int clock_gettime(clockid_t clock, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, t);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) *t = moved(*t, by());
    return result;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *t, int base) {
    if (base != TIME_UTC) return 0;
    clock_gettime(CLOCK_REALTIME, t);
    return base;
}

/* A moment of the moved clock is waited for on the kernel's, in short pieces, each with the clock as it is then: to the
   kernel's clock nothing has happened. Nanoseconds until the next piece ends, by the moved clock; whether it is the last. */
static struct timespec piece(const struct timespec *until, int *last) {
    int64_t at = by(), end = (int64_t)until->tv_sec * 1000000000 + until->tv_nsec;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t next = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + 500000000;
    *last = end <= next;
    return moved((struct timespec){0}, (*last ? end : next) - at);
}

/* Waking without a cause is allowed: the caller looks at its condition and its clock, and waits again. */
int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    /* There is an older one of the same name, which knows nothing of the signals of the newer. */
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real) real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    int last;
    struct timespec next = piece(until, &last);
    int result = real(cond, mutex, &next);
    return result == ETIMEDOUT && !last ? 0 : result;
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict until) {
    static int (*real)(cnd_t *, mtx_t *, const struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "cnd_timedwait");
    int last;
    struct timespec next = piece(until, &last);
    int result = real(cond, mutex, &next);
    return result == thrd_timedout && !last ? thrd_success : result;
}
