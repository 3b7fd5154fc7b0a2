/* Threads that use malloc and its kind without the GIL: what `test_stress.py` and `test_moments.py` load.
 *
 * Every block has a canary in each page, which is looked at before the block is changed and before it is freed. Blocks
 * go from thread to thread, so that most are freed elsewhere. Errors are counted, and said on stderr.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { OWN = 24, SHARED = 64, PAGE = 4096 };

typedef struct block {
    unsigned char *p;
    size_t size;
    unsigned char mark;
} block;

static block *shared[SHARED]; /* exchanged atomically */
static int wrong;
static double until;
static int forking, forks;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void error(const char *what)
{
    __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
    fprintf(stderr, "stress: %s\n", what);
}

static void mark(block *b, unsigned char mark)
{
    size_t at;
    b->mark = mark;
    for (at = 0; at < b->size; at += PAGE)
        b->p[at] = mark;
    if (b->size)
        b->p[b->size - 1] = mark;
}

static void check(const block *b, size_t size)
{
    size_t at;
    for (at = 0; at < size; at += PAGE)
        if (b->p[at] != b->mark) {
            error("a block has changed");
            return;
        }
}

static size_t some_size(unsigned *seed)
{
    static const size_t most[] = {1 << 8, 1 << 14, 1 << 18, 1 << 20, 4 << 20};
    return 1 + (size_t)rand_r(seed) * 7 % most[rand_r(seed) % 5];
}

static int is_zero(const block *b)
{
    size_t at;
    for (at = 0; at < b->size; at += 64)
        if (b->p[at])
            return 0;
    return 1;
}

static void make(block *b, unsigned *seed)
{
    size_t alignment = (size_t)16 << rand_r(seed) % 12;
    void *p = NULL;
    b->size = some_size(seed);
    switch (rand_r(seed) % 8) {
    case 0:
        p = calloc(1 + b->size / 8, 8);
        break;
    case 1:
        if (posix_memalign(&p, alignment, b->size) || (uintptr_t)p % alignment)
            error("posix_memalign");
        break;
    case 2:
        p = memalign(alignment, b->size);
        if ((uintptr_t)p % alignment)
            error("memalign");
        break;
    case 3:
        p = valloc(b->size);
        break;
    default:
        p = malloc(b->size);
    }
    if (!p)
        error("no memory");
    b->p = p;
    if (malloc_usable_size(p) < b->size)
        error("malloc_usable_size");
    mark(b, (unsigned char)rand_r(seed));
}

static void make_zeroed(block *b, unsigned *seed)
{
    b->size = some_size(seed);
    b->p = calloc(b->size, 1);
    if (!b->p || !is_zero(b))
        error("calloc");
    mark(b, (unsigned char)rand_r(seed));
}

static void change(block *b, unsigned *seed)
{
    size_t before = b->size;
    unsigned char *p;
    check(b, before);
    b->size = some_size(seed);
    p = realloc(b->p, b->size);
    if (!p)
        error("realloc");
    b->p = p;
    check(b, before < b->size ? before : b->size);
    mark(b, (unsigned char)rand_r(seed));
}

static void end(block *b)
{
    check(b, b->size);
    free(b->p);
    b->p = NULL;
}

static void exchange(block *b, unsigned *seed)
{
    block *mine = malloc(sizeof(block)), *other;
    *mine = *b;
    other = __atomic_exchange_n(&shared[rand_r(seed) % SHARED], mine, __ATOMIC_ACQ_REL);
    b->p = NULL;
    if (other) {
        *b = *other;
        free(other);
        check(b, b->size);
    }
}

static void work(block *own, unsigned *seed, int steps)
{
    while (steps--) {
        block *b = &own[rand_r(seed) % OWN];
        if (!b->p)
            (rand_r(seed) % 4 ? make : make_zeroed)(b, seed);
        else
            switch (rand_r(seed) % 4) {
            case 0:
                change(b, seed);
                break;
            case 1:
                exchange(b, seed);
                break;
            default:
                end(b);
            }
    }
}

/* A child checks what it has inherited, works on, and executes a program or leaves. */
static void fork_once(block *own, unsigned *seed)
{
    int status = 0, i;
    pid_t child = fork();
    if (child == 0) {
        for (i = 0; i < OWN; i++)
            if (own[i].p)
                check(&own[i], own[i].size);
        wrong = 0;
        work(own, seed, 200);
        if (wrong)
            _exit(1);
        if (rand_r(seed) % 3 == 0)
            execl("/bin/true", "true", (char *)NULL);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        error("a child");
    __atomic_add_fetch(&forks, 1, __ATOMIC_RELAXED);
}

static void *run(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument, i;
    int forks_too = forking && seed % 2;
    block own[OWN];
    memset(own, 0, sizeof(own));
    while (now() < until) {
        work(own, &seed, 100);
        if (forks_too && rand_r(&seed) % 16 == 0)
            fork_once(own, &seed);
    }
    for (i = 0; i < OWN; i++)
        if (own[i].p)
            end(&own[i]);
    return NULL;
}

/* libc's malloc may have its own locks where the signal comes, but the arena lets a request in, or lets it go round. */
static void on_signal(int number)
{
    unsigned char *p = malloc(300000);
    (void)number;
    if (!p)
        error("malloc in a handler");
    p[0] = p[299999] = 1;
    free(p);
}

/* Threads that work, and end and begin anew, until some seconds have passed. With `fork_too` some fork; otherwise a signal
 * comes all the time, whose handler uses malloc. Not both: while a thread forks the C heap serves, which no handler may
 * ask. Returns the errors; `forked`: how often. */
int stress(int threads, double seconds, unsigned seed, int fork_too, int *forked)
{
    struct itimerval timer = {{0, 2000}, {0, 2000}}, none = {{0, 0}, {0, 0}};
    struct sigaction action, former;
    pthread_t started[64];
    double end = now() + seconds;
    int i;
    wrong = forks = 0;
    forking = fork_too;
    memset(&action, 0, sizeof(action));
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigaction(SIGPROF, &action, &former);
    setitimer(ITIMER_PROF, forking ? &none : &timer, NULL);
    while (now() < end) {
        until = now() + seconds / 8;
        for (i = 0; i < threads; i++)
            pthread_create(&started[i], NULL, run, (void *)(uintptr_t)(seed = seed * 1103515245 + 12345));
        for (i = 0; i < threads; i++)
            pthread_join(started[i], NULL);
    }
    setitimer(ITIMER_PROF, &none, NULL);
    sigaction(SIGPROF, &former, NULL);
    for (i = 0; i < SHARED; i++)
        if (shared[i]) {
            check(shared[i], shared[i]->size);
            free(shared[i]->p);
            free(shared[i]);
            shared[i] = NULL;
        }
    *forked = forks;
    return wrong;
}

/* ---- moments ---------------------------------------------------------------------------------------------- */

enum { LARGE = 1 << 20 };

static pthread_key_t key;

static void thread_ends(void *p)
{
    free(p);
    free(malloc(LARGE));
}

static void *with_key(void *argument)
{
    (void)argument;
    pthread_setspecific(key, malloc(LARGE));
    return NULL;
}

/* A thread whose last act is to free, and to ask for more. */
void end_thread(void)
{
    pthread_t thread;
    pthread_key_create(&key, thread_ends);
    pthread_create(&thread, NULL, with_key, NULL);
    pthread_join(thread, NULL);
}

static void *of_handlers[3];

static void at_fork(void)
{
    int i;
    for (i = 0; i < 3; i++) {
        free(of_handlers[i]);
        of_handlers[i] = malloc(LARGE);
        memset(of_handlers[i], 1, LARGE);
    }
}

/* Handlers that use malloc before and after each fork. */
void use_malloc_at_forks(void) { pthread_atfork(at_fork, at_fork, at_fork); }

static int stop;
static pthread_t worker;

static void *churn(void *argument)
{
    (void)argument;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
        free(malloc(3 * LARGE));
    return NULL;
}

static void end_worker(void)
{
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(worker, NULL);
}

static void begin_worker(void)
{
    stop = 0;
    pthread_create(&worker, NULL, churn, NULL);
}

/* As a library does whose threads would be missing in a child: before a fork it ends its thread, which uses malloc. */
void wait_for_a_thread_at_forks(void)
{
    begin_worker();
    pthread_atfork(end_worker, begin_worker, NULL);
}

static FILE *lines;

static void *flush(void *argument)
{
    (void)argument;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
        fflush(NULL);
    return NULL;
}

static void *read_lines(void *argument)
{
    (void)argument;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        char *line = NULL;
        size_t n = 0;
        rewind(lines);
        if (getline(&line, &n, lines) != 3 * LARGE)
            error("getline");
        free(line);
    }
    return NULL;
}

/* libc takes the lock of all files for a fork, who flushes them waits for each with it, and getline has one and grows. */
int fork_beside_files(int times)
{
    pthread_t threads[2];
    int i, status = 0;
    wrong = stop = 0;
    lines = tmpfile();
    for (i = 0; i < 3 * LARGE - 1; i++)
        putc('x', lines);
    putc('\n', lines);
    pthread_create(&threads[0], NULL, flush, NULL);
    pthread_create(&threads[1], NULL, read_lines, NULL);
    while (times--) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (waitpid(child, &status, 0) != child || status)
            error("a child");
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    fclose(lines);
    return wrong;
}

static int ready, finished;

static void *to_be_cancelled(void *argument)
{
    char *p;
    int former, i;
    (void)argument;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &former);
    __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    while (__atomic_load_n(&ready, __ATOMIC_ACQUIRE) != 2)
        ;
    pthread_setcancelstate(former, NULL);
    p = malloc(96 * LARGE);
    for (i = 0; i < 12; i++)
        p[i * 8192] = 1;
    free(p);
    finished++;
    return NULL;
}

/* Threads that are cancelled, and come to no point where that may be but malloc and free. Returns how many do not end. */
int cancel(int times)
{
    int i;
    finished = 0;
    for (i = 0; i < times; i++) {
        pthread_t thread;
        ready = 0;
        pthread_create(&thread, NULL, to_be_cancelled, NULL);
        while (__atomic_load_n(&ready, __ATOMIC_ACQUIRE) != 1)
            ;
        pthread_cancel(thread);
        __atomic_store_n(&ready, 2, __ATOMIC_RELEASE);
        pthread_join(thread, NULL);
    }
    return times - finished;
}

static void *at_end;

static void at_exit(void)
{
    free(at_end);
    at_end = malloc(LARGE);
    memset(at_end, 1, LARGE);
}

__attribute__((destructor)) static void destroy(void)
{
    if (at_end) {
        free(at_end);
        free(malloc(LARGE));
        (void)!write(1, "destroyed\n", 10);
    }
}

/* What frees and allocates when the process ends, after Python has. */
void use_malloc_at_exit(void)
{
    at_end = malloc(LARGE);
    atexit(at_exit);
}
